"""IPPO in plain JAX and Optax, without and with policy embedding.

`diff ippo.py ippo_perla.py` is all that plugging it in takes.
"""

import jax
import jax.numpy as jnp
import optax

import perla
from perla.envs.wrappers import AutoReset

NUM_ENVS, ROLLOUT_LENGTH, UPDATE_EPOCHS, WIDTH = 16, 32, 4, 64
GAMMA, GAE_LAMBDA, CLIP_EPS, ENT_COEF, LR = 0.99, 0.95, 0.2, 0.01, 1e-3
STEPS = 60_000
env = AutoReset(perla.make("lbf:Foraging-5x5-2p-2f-v2"), NUM_ENVS)
N, A = env.spec.agents, env.spec.max_actions
optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(LR))


def network(key, *sizes):
    pairs = zip(jax.random.split(key, len(sizes) - 1), sizes, sizes[1:], strict=False)
    return [jax.nn.initializers.orthogonal(2**0.5)(k, (m, n)) for k, m, n in pairs]


def apply(layers, x):
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer)
    return x @ layers[-1]


def create(key):
    key_actor, key_critic = jax.random.split(key)
    return {
        "actor": network(key_actor, env.spec.obs, WIDTH, WIDTH, A),
        "critic": network(key_critic, env.spec.obs + N * A, WIDTH, WIDTH, 1),
    }


def values(parameters, obs, key):
    def critic(joint):
        others = (1 - jnp.eye(N))[..., None] * jax.nn.one_hot(joint, A)[..., None, :, :]
        seen = jnp.concatenate([obs, others.reshape(*joint.shape, N * A)], -1)
        return apply(parameters["critic"], seen)[..., 0]

    return perla.marginalise(critic, jax.lax.stop_gradient(apply(parameters["actor"], obs)), key)


def loss(parameters, batch):
    logits = apply(parameters["actor"], batch["obs"])
    log_probs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probs, batch["action"][..., None], -1)[..., 0]
    advantage = batch["target"] - batch["value"]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    ratio = jnp.exp(chosen - batch["chosen"])
    clipped = jnp.clip(ratio, 1 - CLIP_EPS, 1 + CLIP_EPS)
    policy = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
    value = values(parameters, batch["obs"], batch["key"])
    return policy - ENT_COEF * entropy + ((value - batch["target"]) ** 2).mean()


def act(carry, key):
    parameters, state, observation = carry
    key_action, key_step = jax.random.split(key)
    logits = apply(parameters["actor"], observation.obs)
    action = jax.random.categorical(key_action, logits)
    log_probs = jax.nn.log_softmax(logits)
    state, step = env.step(key_step, state, action)
    record = {
        "obs": observation.obs,
        "action": action,
        "chosen": jnp.take_along_axis(log_probs, action[..., None], -1)[..., 0],
        "reward": step.reward,
        "ended": step.terminated | step.truncated,
        "going": ~step.terminated,
        "final": step.final.obs,
    }
    return (parameters, state, step.observation), record


def targets(batch):
    following = batch["following"] * batch["going"][..., None]

    def back(next_target, step):
        reward, ended, value = step
        next_target = jnp.where(ended[:, None], value, next_target)
        target = reward + GAMMA * ((1 - GAE_LAMBDA) * value + GAE_LAMBDA * next_target)
        return target, target

    steps = batch["reward"], batch["ended"], following
    return jax.lax.scan(back, following[-1], steps, reverse=True)[1]


@jax.jit
def update(carry, key):
    parameters, optimizer_state, state, observation = carry
    keys = jax.random.split(key, ROLLOUT_LENGTH)
    (_, state, observation), batch = jax.lax.scan(act, (parameters, state, observation), keys)
    both = jnp.stack([batch["obs"], batch["final"]])
    batch["value"], batch["following"] = values(parameters, both, key)
    batch["key"] = key
    batch["target"] = targets(batch)

    def epoch(carry, _):
        parameters, optimizer_state = carry
        gradient = jax.grad(loss)(parameters, batch)
        change, optimizer_state = optimizer.update(gradient, optimizer_state)
        return (optax.apply_updates(parameters, change), optimizer_state), None

    learnt, _ = jax.lax.scan(epoch, (parameters, optimizer_state), None, UPDATE_EPOCHS)
    episodes = jnp.maximum(batch["ended"].sum(), 1)
    return (*learnt, state, observation), batch["reward"].mean(-1).sum() / episodes


def main(steps=STEPS):
    key_create, key_reset, key_learn = jax.random.split(jax.random.key(0), 3)
    parameters = create(key_create)
    carry = (parameters, optimizer.init(parameters), *env.reset(key_reset))
    keys = jax.random.split(key_learn, steps // (NUM_ENVS * ROLLOUT_LENGTH))
    _, returns = jax.lax.scan(update, carry, keys)
    return returns


if __name__ == "__main__":
    for number, value in enumerate(main().reshape(-1, 13).mean(-1)):
        print(f"{(number + 1) * 13 * NUM_ENVS * ROLLOUT_LENGTH:>7,} steps  return {value:.3f}")
