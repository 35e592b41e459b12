"""A COMA-like critic under policy embedding, on a game of two agents and three actions.

The critic, a table Qᵢ(·, a₋ᵢ), has an output for each of agent i's own actions and reads the
other's. COMA's counterfactual advantage is taken at the joint action that was drawn; here its
critic is averaged over what the other may do. An average keeps to the safe 0 unless the other plays
the first action with probability 3/8 or more.
"""

import jax
import jax.numpy as jnp
import optax

import perla

PAYOFF = jnp.array([[8.0, -12.0, -12.0], [-12.0, 0.0, 0.0], [-12.0, 0.0, 0.0]])
BATCH, UPDATES = 64, 2_000
optimizer = optax.sgd(0.02)


def loss(parameters, key):
    key_act, key_others = jax.random.split(key)
    logits = jnp.broadcast_to(parameters["logits"], (BATCH, 2, 3))
    log_probs = jax.nn.log_softmax(logits)
    action = jax.random.categorical(key_act, logits)
    reward = PAYOFF[action[:, 0], action[:, 1]]

    def critic(joint):  # Qᵢ(·, a₋ᵢ): [batch, agent, own action]
        tables, others = parameters["critic"], joint[:, ::-1]
        return jnp.stack([tables[i][:, others[:, i]].T for i in range(2)], 1)

    # Aᵢ = Q̂ᵢ(aᵢ) − Σₐ πᵢ(a) Q̂ᵢ(a)
    q = perla.marginalise(critic, jax.lax.stop_gradient(logits), key_others)
    q = jax.lax.stop_gradient(q)
    advantage = pick(q, action) - (jnp.exp(log_probs) * q).sum(-1)
    actor = -(jax.lax.stop_gradient(advantage) * pick(log_probs, action)).mean()
    error = pick(critic(action), action) - reward[:, None]
    return actor + 20 * (error**2).mean()  # The critic is to be ahead of the policies.


def pick(table, action):
    return jnp.take_along_axis(table, action[..., None], -1)[..., 0]


def main(start):
    """Train from policies that play the first action with probability `start`."""
    share = jnp.array([start, (1 - start) / 2, (1 - start) / 2])
    parameters = {"logits": jnp.log(jnp.tile(share, (2, 1))), "critic": jnp.zeros((2, 3, 3))}

    def update(carry, key):
        parameters, state = carry
        change, state = optimizer.update(jax.grad(loss)(parameters, key), state)
        return (optax.apply_updates(parameters, change), state), None

    keys = jax.random.split(jax.random.key(0), UPDATES)
    (parameters, _), _ = jax.lax.scan(update, (parameters, optimizer.init(parameters)), keys)
    probs = jax.nn.softmax(parameters["logits"])
    return probs[0] @ PAYOFF @ probs[1]


if __name__ == "__main__":
    for start in (1 / 3, 0.6):
        print(f"first action at first with probability {start:.2f}: return {main(start):.2f}")
