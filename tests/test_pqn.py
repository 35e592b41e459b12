"""PQN: targets against a plain loop, fixed points that are known, and learning."""

from __future__ import annotations

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probes
from marks import cases
from perla.algos.batch import minibatches
from perla.algos.pqn import PQN, Learner
from perla.algos.protocol import Trajectory
from perla.cli import main
from perla.config import from_json, to_json
from perla.distributions import EpsilonGreedy
from perla.envs import registry
from perla.envs.protocol import Observation, Spec
from perla.envs.wrappers import AutoReset
from perla.errors import UserError
from perla.loops.anakin import Trainer
from perla.loops.rollout import begin, rollout
from perla.methods.parts import Adam, RMSProp
from perla.methods.recipes import RECIPES
from perla.methods.td import IQLMixer, VDNMixer
from perla.runs.spec import Run

SMALL = PQN(
    num_envs=16,
    rollout_length=6,
    num_minibatches=2,
    gamma=probes.GAMMA,
    q_lambda=0.0,
    normalize_rewards=False,
    epsilon_end=1.0,
    optimizer=Adam(),
    lr=1e-2,
    anneal_lr=False,
    hidden_size=16,
    init="torch",
    layer_norm=False,
    last_action=False,
)
"""Behaviour is uniformly random and targets are one-step, so that the greedy policy's values are
the fixed point."""
METHODS = {"pqn-iql": IQLMixer(), "pqn-vdn": VDNMixer()}
KEY = jax.random.key(0)


def close(ours, theirs, tolerance=1e-5):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


# --- Targets ------------------------------------------------------------------------------------

TIME, AGENTS, ACTIONS = 3, 2, 3
ENDINGS = tuple(itertools.product(("goes on", "terminated", "truncated"), repeat=TIME))
"""All ways in which three steps may end episodes, one for each environment."""
DYING = Spec("random", AGENTS, 2, 0, (ACTIONS,) * AGENTS, 1, "individual", mortal=True)
LAMBDA = 0.7


def observations(key, *batch):
    """Random observations, with masks of which one action is available, and with dead agents."""
    keys = jax.random.split(key, 3)
    return Observation(
        jax.random.normal(keys[0], (*batch, AGENTS, 2)),
        jnp.zeros((*batch, 0)),
        jax.random.bernoulli(keys[1], 0.5, (*batch, AGENTS, ACTIONS)).at[..., 1].set(True),
        jax.random.bernoulli(keys[2], 0.8, (*batch, AGENTS)),
    )


def random_trajectory() -> Trajectory:
    """Random steps with every combination of endings."""
    keys = jax.random.split(jax.random.key(5), 5)
    env, size = len(ENDINGS), (TIME, len(ENDINGS))
    ended = np.array(ENDINGS).T
    is_first = np.concatenate([np.zeros((1, env), bool), ended[:-1] != "goes on"])
    observation, last = observations(keys[0], *size), observations(keys[1], env)
    final = observations(keys[2], *size)

    def follow(final, now, last):
        goes_on = (ended == "goes on").reshape(*size, *(1,) * (now.ndim - 2))
        return jnp.where(goes_on, jnp.concatenate([now[1:], last[None]]), final)

    return Trajectory(
        observation=observation,
        is_first=jnp.asarray(is_first),
        valid=jnp.ones(size, bool),
        hidden_state=jnp.zeros((*size, AGENTS, 0)),
        action=jax.random.randint(keys[3], (*size, AGENTS), 0, ACTIONS),
        policy=None,
        reward=jax.random.normal(keys[4], (*size, AGENTS)),
        terminated=jnp.asarray(ended == "terminated"),
        truncated=jnp.asarray(ended == "truncated"),
        final=jax.tree.map(follow, final, observation, last),
        last=last,
        last_is_first=jnp.asarray(ended[-1] != "goes on"),
        last_hidden_state=jnp.zeros((env, AGENTS, 0)),
    )


def naive_targets(reward, value, terminated, truncated):
    """The λ-returns of one value in one environment, from the `value` of every step's successor."""
    target = np.zeros(TIME)
    for t in reversed(range(TIME)):
        if terminated[t]:
            target[t] = reward[t]
        elif truncated[t] or t == TIME - 1:
            target[t] = reward[t] + probes.GAMMA * value[t]
        else:
            mixture = (1 - LAMBDA) * value[t] + LAMBDA * target[t + 1]
            target[t] = reward[t] + probes.GAMMA * mixture
    return target


@pytest.mark.parametrize("mixer", METHODS.values(), ids=METHODS)
def test_targets_are_those_of_a_plain_loop_however_episodes_end(mixer):
    config = SMALL.replace(mixer=mixer, num_envs=len(ENDINGS), num_minibatches=1, q_lambda=LAMBDA)
    algorithm, trajectory = config.create(DYING), random_trajectory()

    @jax.jit
    def compute(trajectory):
        learner = algorithm.init(KEY)
        _, batch = algorithm.prepare(learner, trajectory)
        no_state = jnp.zeros((TIME, len(ENDINGS), AGENTS, 0))
        utilities = learner.values.utilities
        outputs, _ = utilities(trajectory.final.obs, no_state, jnp.ones(no_state.shape[:2], bool))
        return batch.target, outputs.values

    targets, utilities = map(np.asarray, compute(trajectory))
    _, _, avail, alive = map(np.asarray, trajectory.final)
    value = np.where(avail, utilities, -np.inf).max(-1) * alive
    reward = np.asarray(trajectory.reward)
    if isinstance(mixer, VDNMixer):
        value, reward = value.sum(-1, keepdims=True), reward.mean(-1, keepdims=True)
    for env, one in itertools.product(range(len(ENDINGS)), range(value.shape[-1])):
        ended = np.asarray(trajectory.terminated), np.asarray(trajectory.truncated)
        expected = naive_targets(
            reward[:, env, one], value[:, env, one], *(end[:, env] for end in ended)
        )
        close(targets[:, env, one], expected)


@pytest.mark.parametrize("network", ["mlp", "gru"])
@pytest.mark.parametrize("num_minibatches", [1, 2])
def test_the_learner_sees_the_values_that_chose_the_actions(network, num_minibatches):
    """Minibatches are steps, or rollouts from the stored hidden state; either way values are those
    of the rollout, also where they depend on the last action."""
    world = replace(probes.PATIENCE, end="truncated")
    config = SMALL.replace(
        actor_network=network,
        last_action=True,
        num_envs=4,
        rollout_length=5,
        num_minibatches=num_minibatches,
    )
    algorithm, envs = config.create(world.spec), AutoReset(world, 4)

    @jax.jit
    def losses(key):
        learner = algorithm.init(key)
        runner_state = begin(envs, learner.actor, key)
        for part in jax.random.split(key):  # The second rollout starts in the middle of an episode.
            runner_state, trajectory, _ = rollout(envs, learner.actor, runner_state, part, 5)
        policy = trajectory.policy
        assert isinstance(policy, EpsilonGreedy)
        chosen = jnp.take_along_axis(policy.values, trajectory.action[..., None], -1)
        _, batch = algorithm.prepare(learner, trajectory)
        batch = batch._replace(target=chosen.sum(-2))
        split = minibatches(batch, num_minibatches, algorithm.sequence, key)
        return jax.vmap(lambda part: algorithm.loss(learner.values, part)[0])(split)

    close(losses(KEY), np.zeros(num_minibatches))


# --- Fixed points -------------------------------------------------------------------------------

PAYOFF = np.array([[8.0, -12.0, -12.0], [-12.0, 0.0, 0.0], [-12.0, 0.0, 0.0]])
GAME = probes.Probe("game", probes.payoff(*map(tuple, PAYOFF)), {}, agents=2, actions=3)
ROWS, COLUMNS = PAYOFF.mean(1), PAYOFF.mean(0)
FIXED_POINTS = {
    # The payoff of an action, averaged over the other's.
    "pqn-iql": np.stack([ROWS, COLUMNS]),
    # The sum that is nearest the payoffs: of rows and columns, less the mean.
    "pqn-vdn": ROWS[:, None] + COLUMNS - PAYOFF.mean(),
}


@pytest.mark.parametrize("algo", METHODS)
def test_the_fixed_point_on_a_game_whose_joint_actions_are_all_as_likely(algo):
    """Independent learners find averages, and a sum the least squares fit."""
    config = SMALL.replace(
        mixer=METHODS[algo], num_envs=9, rollout_length=1, num_minibatches=1, anneal_lr=True
    )
    algorithm = config.create(GAME.spec)
    actions = jnp.stack(jnp.meshgrid(*[jnp.arange(3)] * 2, indexing="ij"), -1).reshape(1, 9, 2)
    reward = jnp.broadcast_to(jnp.asarray(PAYOFF.reshape(1, 9, 1), float), (1, 9, 2))

    @jax.jit
    def learn(key):
        learner = algorithm.init(key)
        runner_state = begin(envs := AutoReset(GAME, 9), learner.actor, key)
        _, trajectory, _ = rollout(envs, learner.actor, runner_state, key, 1)
        trajectory = trajectory._replace(action=actions, reward=reward)

        def step(learner, progress):
            return algorithm.update(learner, trajectory, key, progress)[0], None

        learner, _ = jax.lax.scan(step, learner, jnp.linspace(0.0, 1.0, 200))
        observation = jax.tree.map(lambda x: x[0, 0], trajectory.observation)
        state = learner.actor.initial_state(())
        return learner.values.utilities(observation.obs, state, jnp.array(True))[0].values

    utilities = np.asarray(learn(KEY))
    if algo == "pqn-vdn":
        utilities = utilities[0][:, None] + utilities[1]
    close(utilities, FIXED_POINTS[algo], 0.05)


def train(world: probes.Probe, config: PQN, updates: int) -> Learner:
    """The learner after this many updates in a probe environment."""
    steps = updates * config.num_envs * config.length(world.spec.limit)
    trainer = Trainer(world, config, seeds=(0,), steps=steps, eval_episodes=1)
    population, _ = trainer.advance(trainer.init(), steps)
    return jax.tree.map(lambda x: jnp.asarray(x[0]), trainer.export(population).learner)


SETTLING = {"epsilon_end": 0.05, "epsilon_decay_steps": 5000}
"""For rewards that no sum represents while the others act randomly."""
CASES = {
    "endless, cut at three steps": (
        probes.ENDLESS, {"mixer": IQLMixer(), "q_lambda": 0.5, "rollout_length": 2}),
    "patience, whole episodes, GRU": (
        probes.PATIENCE,
        {"actor_network": "gru", "num_layers": 1, "last_action": True, "rollout_length": None,
         "num_envs": 64, "parameter_sharing": "separate"}),
    "forbidden temptation": (
        probes.TEMPTATION, {"mixer": IQLMixer(), "optimizer": RMSProp(), "max_grad_norm": 1.0}),
    "mortal": (
        probes.MORTAL, SETTLING | {"mixer": IQLMixer(), "layer_norm": True, "q_lambda": 0.95}),
    "kinds, in groups": (
        probes.KINDS, SETTLING | {"parameter_groups": (0, 1, 0), "agent_ids": False}),
}  # fmt: skip


SLOW = (
    "endless, cut at three steps",
    "patience, whole episodes, GRU",
    "mortal",
    "kinds, in groups",
)


@pytest.mark.parametrize("case", cases(CASES, *SLOW))
def test_learns_the_known_values_and_actions(case):
    world, settings = case
    learner = train(world, SMALL.replace(**settings), updates=150)
    for (time, signs), known in world.known.items():
        if settings.get("actor_network") == "gru" and time:
            continue
        observation = world.see(world.moment(time, signs))
        state = learner.actor.initial_state(())
        policy, _ = learner.actor(observation, state, jnp.array(True))
        outputs, _ = learner.values.utilities(observation.obs, state, jnp.array(True))
        value = learner.values.joint(outputs, policy.mode(), observation)
        where = f"time {time}, signs {signs}"
        np.testing.assert_allclose(value, known, atol=0.1, err_msg=where)
        if world.best is not None and time == world.length - 1:
            np.testing.assert_array_equal(policy.mode(), world.best(signs))


# --- Schedules and settings ---------------------------------------------------------------------


def test_epsilon_falls_with_the_steps_and_the_learning_rate_with_the_run():
    config = SMALL.replace(
        num_envs=4, epsilon_end=0.1, epsilon_decay_steps=48, anneal_lr=True, normalize_rewards=True
    )
    algorithm, envs = config.create(probes.MATCH.spec), AutoReset(probes.MATCH, 4)

    @jax.jit
    def update(learner, progress):
        runner_state = begin(envs, learner.actor, KEY)
        _, trajectory, _ = rollout(envs, learner.actor, runner_state, KEY, 6)
        return algorithm.update(learner, trajectory, KEY, progress)[0]

    first = algorithm.init(KEY)
    second = update(first, jnp.float32(0.5))
    last = update(second, jnp.float32(1.0))
    close([first.epsilon, second.epsilon, last.epsilon], [1.0, 0.55, 0.1])
    weights = [x.values.utilities.body.net.head.layers[0].weight for x in (first, second, last)]
    assert (weights[0] != weights[1]).any()
    np.testing.assert_array_equal(weights[1], weights[2])
    assert last.rewards.seen == 48


@pytest.mark.parametrize(
    ("settings", "world", "says"),
    [
        ({"num_minibatches": 5}, probes.MATCH, "must divide the 96 sequences"),
        ({"num_minibatches": 3, "actor_network": "gru"}, probes.MATCH, "the 16 sequences"),
        ({"parameter_groups": (0, 1)}, probes.MATCH, "2 agents, but"),
        ({}, probes.AIM, "needs discrete actions"),
    ],
)
def test_settings_that_do_not_fit(settings, world, says):
    with pytest.raises(UserError, match=says):
        SMALL.replace(**settings).create(world.spec)


def test_groups_of_separate_parameters_are_refused():
    with pytest.raises(UserError, match="leave one of the two out"):
        PQN(parameter_groups=(0, 1), parameter_sharing="separate")


@pytest.mark.parametrize("algo", METHODS)
def test_the_help_of_a_method_has_its_settings(algo, capsys):
    assert RECIPES[algo].settings == {"mixer": METHODS[algo]}
    assert main(["train", algo, "--help"]) == 0
    text = capsys.readouterr().out
    assert RECIPES[algo].about in text
    assert "--q-lambda X" in text
    assert "--buffer-size" not in text


def test_a_run_is_read_as_it_was_written():
    run = Run(env="lbf:Foraging-5x5-2p-1f-v2", algo="pqn-vdn", config=PQN(), steps=100)
    assert from_json(to_json(run), Run, source="here") == run


def test_a_restored_learner_goes_on_as_if_never_interrupted():
    config = SMALL.replace(actor_network="gru", last_action=True, epsilon_decay_steps=300)
    trainer = Trainer(probes.PATIENCE, config, seeds=(3,), steps=10**4, eval_episodes=2)
    once, _ = trainer.advance(trainer.init(), 4 * 96)
    half, _ = trainer.advance(trainer.init(), 2 * 96)
    again, _ = trainer.advance(trainer.restore(trainer.export(half)), 4 * 96)
    ours, theirs = (jax.tree.leaves(trainer.export(p).learner) for p in (once, again))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("algo", METHODS)
def test_learns_to_forage(algo):
    env, config = registry.make_env("lbf:Foraging-8x8-2p-2f-coop-v2"), PQN(mixer=METHODS[algo])
    trainer = Trainer(env, config, seeds=(0,), steps=500_000, eval_episodes=320)
    _, (row,) = trainer.advance(trainer.init(), 500_000)
    assert row["return_sampled"] >= 0.95
