"""MADDPG: targets and gradients against explicit loops, and learning in probe environments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probes
from marks import cases
from perla.algos import maddpg
from perla.algos.replay import Sequences
from perla.envs.protocol import Observation, Spec
from perla.loops.anakin import Trainer
from perla.methods.maddpg import GumbelSoftmax
from perla.methods.parts import Hard, Huber, RMSProp, Soft
from perla.methods.recipes import make

SMALL = {
    "num_envs": 16,
    "rollout_length": 6,
    "buffer_size": 128,
    "batch_size": 32,
    "updates_per_rollout": 2,
    "gamma": probes.GAMMA,
    "target": Hard(target_update_interval=10),
    "logit_penalty": 0.01,
    "normalize_rewards": False,
    "lr": 1e-2,
    "actor_network": "mlp",
    "hidden_size": 16,
    "num_layers": 1,
    "critic_num_layers": 1,
    "init": "torch",
}


# --- Against loops ------------------------------------------------------------------------------

AGENTS, ACTIONS, OBS, STATE, TIME = 2, 3, 4, 5, 3
SPEC = Spec("random", AGENTS, OBS, STATE, (ACTIONS,) * AGENTS, 100, "individual")


@pytest.fixture(scope="module")
def batch() -> Sequences:
    """Two sequences of three steps: the second step of one was truncated, that of the other
    terminated, after which it is not valid."""
    rng = np.random.default_rng(0)
    timesteps = TIME + 2
    avail = rng.random((timesteps, 2, AGENTS, ACTIONS)) < 0.6
    avail[..., 1] = True
    flags = np.zeros((3, TIME, 2), bool)
    flags[0, 1, 0] = flags[1, 1, 1] = True
    flags[2] = [[True, True], [True, True], [True, False]]
    truncated, terminated, valid = map(jnp.asarray, flags)
    return Sequences(
        observation=Observation(
            jnp.asarray(rng.normal(size=(timesteps, 2, AGENTS, OBS)), float),
            jnp.asarray(rng.normal(size=(timesteps, 2, STATE)), float),
            jnp.asarray(avail),
        ),
        hidden_state=jnp.zeros((1, 2, AGENTS, 0)),
        is_first=jnp.zeros((TIME, 2), bool),
        valid=valid,
        action=jnp.asarray(rng.integers(ACTIONS, size=(TIME, 2, AGENTS))),
        reward=jnp.asarray(rng.normal(size=(TIME, 2, AGENTS)), float),
        terminated=terminated,
        truncated=truncated,
        sources=jnp.array([[TIME - 1, TIME - 1], [1, TIME - 1]]),
    )


def successor(time: int, sequence: int) -> int:
    """The timestep that is each step's successor."""
    return TIME + 1 if (time, sequence) == (1, 0) else time + 1


class Net:
    """One agent's net with one hidden layer in NumPy: forward, and backward, which accumulates the
    gradients of its weights."""

    def __init__(self, body, agent):
        layers = jax.tree.map(np.asarray, body.net.head.layers)
        if body.parameter_groups:
            layers = jax.tree.map(lambda x: x[agent], layers)
        (self.w0, self.b0), (self.w1, self.b1) = ((layer.weight, layer.bias) for layer in layers)
        self.id = np.eye(AGENTS)[agent] if body.ids else np.zeros(0)
        self.gradients = [np.zeros(x.shape) for x in (self.w0, self.b0, self.w1, self.b1)]

    def __call__(self, features, others=()):
        self.x = np.concatenate([features, self.id, others])
        self.h = np.maximum(self.x @ self.w0 + self.b0, 0.0)
        return self.h @ self.w1 + self.b1

    def back(self, d):
        """The gradient of the inputs from that of the outputs."""
        dh = (self.w1 @ d) * (self.h > 0)
        more = np.outer(self.x, dh), dh, np.outer(self.h, d), d
        self.gradients = [a + b for a, b in zip(self.gradients, more, strict=True)]
        return self.w0 @ dh


def one_hot(action):
    return np.eye(ACTIONS)[np.asarray(action)]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def masked(net, batch, timestep, sequence, agent):
    """An agent's logits, and the same with −∞ for unavailable actions."""
    logits = net(np.asarray(batch.observation.obs[timestep, sequence, agent]))
    return logits, np.where(batch.observation.avail[timestep, sequence, agent], logits, -np.inf)


@pytest.fixture(scope="module", params=["shared", "separate"])
def learner(request):
    """An algorithm, and networks away from their initial values, which are near zero."""
    config = make("maddpg", **SMALL | {
        "parameter_sharing": request.param, "hidden_size": 8,
        "relaxation": GumbelSoftmax(temperature=0.7)})  # fmt: skip
    algorithm = maddpg.Algorithm(config, SPEC)
    networks = jax.jit(algorithm.init)(jax.random.key(1)).networks
    return algorithm, jax.tree.map(lambda x: 2.0 * x, networks)


def expected_targets(algorithm, networks, batch):
    y = np.zeros((TIME, 2, AGENTS))
    for time, sequence, agent in np.ndindex(*y.shape):
        timestep = successor(time, sequence)
        best = [
            masked(Net(networks.actor.logits.body, other), batch, timestep, sequence, other)[
                1
            ].argmax()
            for other in range(AGENTS)
        ]
        state = np.asarray(batch.observation.state[timestep, sequence])
        q = Net(networks.critic.body, agent)(state, one_hot(best).ravel())[0]
        goes_on = 1.0 - batch.terminated[time, sequence]
        y[time, sequence, agent] = (
            batch.reward[time, sequence, agent] + algorithm.config.gamma * goes_on * q
        )
    return y


def summed(nets, body):
    """The body's gradients from the agents': summed, or stacked."""
    parts = zip(*(net.gradients for net in nets), strict=True)
    return [np.stack(part) if body.parameter_groups else sum(part) for part in parts]


def leaves(gradient):
    """The gradients of the dense layers."""
    first, second = gradient.net.head.layers
    return [first.weight, first.bias, second.weight, second.bias]


def test_targets_and_the_critics_gradient_are_those_of_loops(batch, learner):
    algorithm, networks = learner
    y = expected_targets(algorithm, networks, batch)
    np.testing.assert_allclose(jax.jit(algorithm.targets)(networks, batch), y, atol=1e-5)

    count = AGENTS * int(batch.valid.sum())
    loss, critics = 0.0, [Net(networks.critic.body, agent) for agent in range(AGENTS)]
    for agent, critic in enumerate(critics):
        for time, sequence in zip(*np.nonzero(batch.valid), strict=True):
            done = one_hot(batch.action[time, sequence]).ravel()
            q = critic(np.asarray(batch.observation.state[time, sequence]), done)
            error = q - y[time, sequence, agent]
            loss += error[0] ** 2 / count
            critic.back(2 * error / count)

    slope = jax.jit(jax.value_and_grad(algorithm.critic_loss, has_aux=True))
    (value, _), found = slope(networks.critic, batch, jnp.asarray(y, float))
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    expected = summed(critics, networks.critic.body)
    for ours, theirs in zip(leaves(found.body), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_actors_gradient_is_that_of_loops(batch, learner):
    """Through a one-hot action sampled by the straight-through Gumbel-softmax; the other agents'
    actions are the replayed ones."""
    algorithm, networks = learner
    config, key = algorithm.config, jax.random.key(2)
    noise = np.asarray(jax.random.gumbel(key, (TIME, 2, AGENTS, ACTIONS)))

    count = AGENTS * int(batch.valid.sum())
    loss, body = 0.0, networks.actor.logits.body
    actors = [Net(body, agent) for agent in range(AGENTS)]
    for agent, actor in enumerate(actors):
        critic = Net(networks.critic.body, agent)
        for time, sequence in zip(*np.nonzero(batch.valid), strict=True):
            raw, logits = masked(actor, batch, time, sequence, agent)
            soft = softmax((logits + noise[time, sequence, agent]) / config.relaxation.temperature)
            joint = one_hot(batch.action[time, sequence])
            joint[agent] = one_hot(soft.argmax())
            q = critic(np.asarray(batch.observation.state[time, sequence]), joint.ravel())
            inputs = critic.back(np.array([-1.0 / count]))
            d_action = inputs[-AGENTS * ACTIONS :].reshape(AGENTS, ACTIONS)[agent]
            # ∂yⱼ/∂zₖ = yⱼ (δⱼₖ − yₖ) / T
            d_logits = soft * (d_action - soft @ d_action) / config.relaxation.temperature
            available = np.where(np.isfinite(logits), raw, 0.0)
            loss += (config.logit_penalty * (available**2).mean() - q[0]) / count
            actor.back(d_logits + config.logit_penalty * 2 * available / ACTIONS / count)

    slope = jax.jit(jax.value_and_grad(algorithm.actor_loss, has_aux=True))
    (value, _), found = slope(networks.actor, networks.critic, batch, key)
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    for ours, theirs in zip(leaves(found.logits.body), summed(actors, body), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert max(np.abs(np.asarray(x)).max() for x in leaves(found.logits.body)) > 1e-3


# --- Learning -----------------------------------------------------------------------------------


def test_its_critic_begins_near_zero():
    """The maximum of large random values would overestimate the targets."""
    critic = jax.jit(lambda key: maddpg.create_critic(make("maddpg"), SPEC, key))(jax.random.key(0))
    state = jax.random.normal(jax.random.key(1), (32, STATE))
    action = jax.random.randint(jax.random.key(2), (32, 1, AGENTS), 0, ACTIONS)
    assert abs(critic(state, jax.nn.one_hot(action, ACTIONS))).max() < 0.1


def train(world: probes.Probe, updates: int = 150, **settings) -> maddpg.Learner:
    config = make("maddpg", **SMALL | settings)
    steps = updates * config.num_envs * config.length(world.spec.limit)
    trainer = Trainer(world, config, seeds=(0,), steps=steps, eval_episodes=1)
    population, _ = trainer.advance(trainer.init(), steps)
    return jax.tree.map(lambda x: jnp.asarray(x[0]), trainer.export(population).learner)


CASES = {
    "delayed reward": (
        probes.DELAY, {"target": Soft(target_update_tau=0.1), "loss": Huber(huber_delta=0.5)}),
    "endless, whole episodes, cut at three steps": (
        probes.ENDLESS, {"rollout_length": None, "critic_lr": 2e-2}),
    "forbidden temptation": (probes.TEMPTATION, {"optimizer": RMSProp(), "layer_norm": True}),
    "together": (
        probes.TOGETHER,
        {"parameter_sharing": "separate", "num_layers": 2, "critic_num_layers": 2}),
    "patience, GRU": (
        probes.PATIENCE,
        {"actor_network": "gru", "last_action": True, "updates": 500}),
}  # fmt: skip


SLOW = (
    "delayed reward",
    "forbidden temptation",
    "patience, GRU",
    "endless, whole episodes, cut at three steps",
)


@pytest.mark.parametrize("case", cases(CASES, *SLOW))
def test_learns_the_known_values_and_actions(case):
    world, settings = case
    learner = train(world, **settings)
    for (time, signs), known in world.known.items():
        if settings.get("actor_network") == "gru" and time:
            continue
        observation = world.see(world.moment(time, signs))
        policy, _ = learner.actor(observation, learner.actor.initial_state(()), jnp.array(True))
        action = policy.mode()
        joint = jax.nn.one_hot(action, world.actions)[None]
        value = learner.networks.critic(observation.state, joint)
        np.testing.assert_allclose(value, known, atol=0.1, err_msg=f"time {time}, signs {signs}")
        if world.best is not None and time == world.length - 1:
            np.testing.assert_array_equal(action, world.best(signs))
        assert (policy.probs[:, list(world.forbidden)] == 0).all()


# --- Seeds and interruptions --------------------------------------------------------------------


@pytest.mark.slow
def test_restored_learners_go_on_as_if_never_interrupted():
    config = make("maddpg", **SMALL | {"actor_network": "gru"})
    trainer = Trainer(
        probes.PATIENCE, config, seeds=(3, 4), steps=10**4, eval_episodes=2, vectorise=True
    )
    per_update = config.num_envs * config.rollout_length
    once, _ = trainer.advance(trainer.init(), 4 * per_update)
    half, _ = trainer.advance(trainer.init(), 2 * per_update)
    again, _ = trainer.advance(trainer.restore(trainer.export(half)), 4 * per_update)
    ours, theirs = (jax.tree.leaves(trainer.export(p).learner) for p in (once, again))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))
    assert (trainer.export(once).learner.updates == 4 * config.updates_per_rollout).all()
