"""A MADDPG-like critic under policy embedding: continuous actions, gradients through the own one.

Three agents shall add up to a target and each stay small. The critic Q(aᵢ, a₋ᵢ) takes the own
action, which is handed over as `own`; the others' are drawn from their policies.
"""

import jax
import jax.numpy as jnp
import optax

import perla
from perla.distributions import Gaussian

N, BATCH, UPDATES, TARGET = 3, 128, 3_000, 1.5
optimizer = optax.adam(5e-3)


def reward(joint):
    return -((joint.sum((-2, -1)) - TARGET) ** 2) - 0.1 * (joint**2).sum((-2, -1))


def features(joint):  # of a critic that is quadratic in the joint action
    x = jnp.concatenate([joint[..., 0], jnp.ones((*joint.shape[:-2], 1))], -1)
    return (x[..., :, None] * x[..., None, :]).reshape(*joint.shape[:-2], -1)


def loss(parameters, key):
    key_act, key_others = jax.random.split(key)
    mean = jnp.broadcast_to(parameters["mean"][:, None], (BATCH, N, 1))
    policy = Gaussian(mean, jnp.full((BATCH, N, 1), 0.3))
    own = policy.sample(key_act)
    frozen = jax.lax.stop_gradient(parameters["critic"])

    def critic(joint):
        return jnp.broadcast_to((features(joint) @ frozen)[:, None], (BATCH, N))

    others = jax.lax.stop_gradient(policy)
    actor = -perla.marginalise(critic, others, key_others, own=own).mean()
    taken = jax.lax.stop_gradient(own)
    error = features(taken) @ parameters["critic"] - reward(taken)
    return actor + (error**2).mean()


def main():
    """The mean action of every agent after training."""
    parameters = {"mean": jnp.zeros(N), "critic": jnp.zeros((N + 1) ** 2)}

    def update(carry, key):
        parameters, state = carry
        change, state = optimizer.update(jax.grad(loss)(parameters, key), state)
        return (optax.apply_updates(parameters, change), state), None

    keys = jax.random.split(jax.random.key(0), UPDATES)
    (parameters, _), _ = jax.lax.scan(update, (parameters, optimizer.init(parameters)), keys)
    return parameters["mean"]


if __name__ == "__main__":
    best = TARGET / (N + 0.1)
    print(f"mean actions {main().round(2)}, best {best:.2f} each")
