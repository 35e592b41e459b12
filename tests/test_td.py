"""The value-decomposition learner: components against definitions, learning in small tasks."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probes
from marks import cases, slow
from perla.algos import td
from perla.algos.replay import Replay, sequences
from perla.config import from_json, to_json
from perla.distributions import MASKED_LOGIT, EpsilonGreedy, Perturbed
from perla.envs import matrix
from perla.envs.wrappers import AutoReset
from perla.errors import UserError
from perla.loops.anakin import Trainer
from perla.loops.rollout import begin, rollout
from perla.methods.parts import Hard, Huber, RMSProp, Soft
from perla.methods.recipes import RECIPES, make
from perla.methods.td import TD, Weighted
from perla.runs.spec import Run

SMALL = {
    "num_envs": 16,
    "rollout_length": 6,
    "buffer_size": 128,
    "batch_size": 32,
    "updates_per_rollout": 2,
    "gamma": probes.GAMMA,
    "target": Hard(target_update_interval=10),
    "epsilon_end": 1.0,
    "normalize_rewards": False,
    "lr": 1e-2,
    "actor_network": "mlp",
    "hidden_size": 16,
    "num_layers": 2,
    "init": "torch",
    "last_action": False,
}
"""Behaviour is uniformly random, so that all states and actions are visited."""


# --- The policy ---------------------------------------------------------------------------------


def test_the_mode_is_greedy_however_random_the_behaviour():
    values = jnp.array([[1.0, 3.0, 2.0], [0.0, 0.0, -1.0], [MASKED_LOGIT, -5.0, -5.0]])
    for epsilon in (0.0, 0.5, 1.0):
        policy = EpsilonGreedy(values, jnp.float32(epsilon))
        np.testing.assert_array_equal(policy.mode(), [1, 0, 1])
        np.testing.assert_allclose(policy.probs.sum(-1), 1.0, rtol=1e-6)


def test_random_actions_are_available_ones():
    values = jnp.array([MASKED_LOGIT, 7.0, MASKED_LOGIT, 1.0])
    policy = EpsilonGreedy(values, jnp.float32(0.4))
    np.testing.assert_allclose(policy.probs, [0.0, 0.8, 0.0, 0.2], rtol=1e-6)
    many = EpsilonGreedy(jnp.broadcast_to(values, (5000, 4)), jnp.float32(0.4))
    counts = np.bincount(many.sample(jax.random.key(0)), minlength=4) / 5000
    np.testing.assert_allclose(counts, [0.0, 0.8, 0.0, 0.2], atol=0.03)


def test_samples_have_noise_and_the_mode_has_none():
    noisy, settled = jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]])
    policy = Perturbed(
        EpsilonGreedy(noisy, jnp.float32(0.0)), EpsilonGreedy(settled, jnp.float32(0.0))
    )
    np.testing.assert_array_equal(policy.mode(), [0])
    np.testing.assert_array_equal(policy.sample(jax.random.key(0)), [1])
    np.testing.assert_array_equal(policy.probs, [[0.0, 1.0]])


def test_epsilon_falls_linearly_and_stays():
    config = make("vdn", epsilon_start=0.9, epsilon_end=0.1, epsilon_decay_steps=1000)
    algorithm = td.Algorithm(config, probes.MATCH.spec)
    at = [float(algorithm.epsilon(jnp.int32(steps))) for steps in (0, 500, 1000, 10**9)]
    np.testing.assert_allclose(at, [0.9, 0.5, 0.1, 0.1], rtol=1e-6)


# --- The replay ---------------------------------------------------------------------------------


def played(config: TD, world: probes.Probe):
    """A new learner and its rollout: whole episodes, or starting in the middle of one."""
    algorithm = td.Algorithm(config, world.spec)
    copies = AutoReset(world, config.num_envs)
    whole, late = config.rollout_length is None, 0 if config.rollout_length is None else 2

    @jax.jit
    def run(key):
        learner = algorithm.init(key)
        scene = begin(copies, learner.actor, key)
        length = config.length(world.spec.limit) + late
        _, steps, _ = rollout(copies, learner.actor, scene, key, length, whole_episodes=whole)
        last = {
            name: getattr(steps, name) for name in ("last", "last_is_first", "last_hidden_state")
        }
        return learner, jax.tree.map(lambda x: x[late:], steps)._replace(**last)

    return algorithm, *run(jax.random.key(0))


CUT = replace(probes.PATIENCE, end="truncated")


@pytest.mark.parametrize(
    ("world", "horizon"), [(CUT, 1), (CUT, 3), (CUT, 8), (CUT, None), (probes.PATIENCE, 8)]
)
def test_every_successor_is_a_timestep_of_its_sequence(world, horizon):
    config = make("vdn", **SMALL | {"rollout_length": horizon, "num_envs": 4})
    _, _, trajectory = played(config, world)
    assert (trajectory.truncated.sum() > 0) == (world is CUT)
    steps = jax.jit(lambda trajectory: sequences(
        trajectory, trajectory.reward, world.spec, state=True))(trajectory)  # fmt: skip
    envs, successor = np.arange(4)[None], np.asarray(steps.successor)
    goes_on = ~np.asarray(steps.terminated)
    assert steps.observation.alive is trajectory.final.alive is None
    for seen, final in zip(steps.observation[:3], trajectory.final[:3], strict=True):
        successors = np.asarray(seen)[successor, envs]
        np.testing.assert_array_equal(successors[goes_on], np.asarray(final)[goes_on])


@pytest.mark.parametrize(("algo", "network"), [("vdn", "mlp"), ("vdn", "gru"), ("maic", "gru")])
def test_replayed_utilities_equal_those_of_the_rollout(algo, network):
    """From the stored hidden state, the utilities are those from which actions were chosen."""
    config = make(algo, **SMALL | {"actor_network": network, "last_action": True, "num_envs": 4,
                                 "rollout_length": 5})  # fmt: skip
    algorithm, learner, trajectory = played(config, CUT)
    policy = trajectory.policy
    if isinstance(policy, Perturbed):
        assert (policy.noisy.values != policy.settled.values).any()
        policy = policy.settled

    @jax.jit
    def unroll(learner, trajectory):
        ring = algorithm.store(learner, trajectory).replay_state.replay.ring
        steps = jax.tree.map(lambda x: x[:4].swapaxes(0, 1), ring)
        # After the last step, from the actor itself.
        after, _ = learner.actor(trajectory.last, trajectory.last_hidden_state, jnp.zeros(4, bool))
        return learner.networks.values.unroll(steps, None).values, after.values

    utilities, after = unroll(learner, trajectory)
    np.testing.assert_allclose(utilities[: config.rollout_length], policy.values, atol=1e-5)
    assert not (trajectory.terminated | trajectory.truncated)[-1].any()
    np.testing.assert_allclose(utilities[config.rollout_length], after, atol=1e-5)


def test_the_ring_keeps_the_newest():
    config = make("iql", **SMALL | {"num_envs": 4, "rollout_length": 2, "buffer_size": 10})
    _, learner, trajectory = played(config, probes.PATIENCE)

    @jax.jit
    def add(replay: Replay, number):
        reward = jnp.full_like(trajectory.reward, number)
        new = sequences(trajectory, reward, probes.PATIENCE.spec, state=False)
        replay = replay.add(new)
        return replay, replay.sample(jax.random.key(number)[None], 400).reward[0]

    replay = learner.replay_state.replay
    for number in range(4):
        replay, drawn = add(replay, number)
        seen = set(np.unique(drawn))
        assert seen == set(range(max(0, number - 2), number + 1))
    # Ten of the sixteen are left: two of the second, four of the third, four of the last.
    kept = np.bincount(np.asarray(replay.ring.reward[:, 0, 0], int), minlength=4)
    np.testing.assert_array_equal(kept, [0, 2, 4, 4])
    assert replay.ring.observation.state.shape[-1] == 0, "IQL does not use the state"
    assert replay.ring.action.dtype == jnp.int8


@pytest.mark.parametrize("num_envs", [1, *slow(4)])
def test_an_update_copies_nothing_of_the_ring(num_envs):
    """In the text of the compiled program no copy has the ring's capacity as its first axis."""
    config = make("qmix", **SMALL | {"num_envs": num_envs, "rollout_length": None,
                                     "buffer_size": 173, "updates_per_rollout": 1})  # fmt: skip
    trainer = Trainer(probes.PATIENCE, config, seeds=(0,), steps=1000)
    state, count = trainer._state_shapes, jax.ShapeDtypeStruct((), jnp.int32)
    text = trainer._train.lower(state, count, count, count).compile().as_text()
    assert re.search(r"\[173,[\d,]+\]\S* (fusion|scatter)\(", text)
    copies = re.findall(r"\S+ = \w+\[173,[\d,]+\]\S* copy\([^)]*\)", text)
    assert not [copy for copy in copies if ",0]" not in copy]


@pytest.mark.parametrize("algo", ["vdn", *slow("qplex", "cw-qmix", "qtran-alt")])
def test_without_a_discount_no_successors_are_stored(algo):
    """In one-step games the discount does not change the parameters."""
    world = matrix.make_env("climbing")

    @partial(jax.jit, static_argnums=0)
    def update(algorithm, learner, trajectory, key):
        return algorithm.update(learner, trajectory, key, jnp.float32(0.0))[0]

    def learnt(gamma):
        config = make(algo, **SMALL | {"num_envs": 4, "rollout_length": 1, "gamma": gamma})
        algorithm, learner, trajectory = played(config, world)
        for key in jax.random.split(jax.random.key(1), 3):
            learner = update(algorithm, learner, trajectory, key)
        return learner

    near, far = learnt(0.0), learnt(0.9)
    timesteps = [x.replay_state.replay.ring.observation.obs.shape[1] for x in (near, far)]
    assert timesteps == [1, 3]
    for ours, theirs in zip(*(jax.tree.leaves(x.networks) for x in (near, far)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


# --- Weights ------------------------------------------------------------------------------------


def test_the_optimistic_weight_is_one_for_underestimates():
    error = jnp.array([[-1.0], [0.0], [2.0]])
    got = td.weights(Weighted(full="optimistic", alpha=0.25), error, error > 9, error, error)
    np.testing.assert_array_equal(got, [[1.0], [0.25], [0.25]])


def test_the_central_weight_is_one_for_greedy_actions_and_for_better_targets():
    greedy = jnp.array([[True], [False], [False]])
    target, best = jnp.array([[0.0], [3.0], [1.0]]), jnp.array([[5.0], [2.0], [2.0]])
    got = td.weights(Weighted(full="central", alpha=0.5), target, greedy, target, best)
    np.testing.assert_array_equal(got, [[1.0], [1.0], [0.5]])


@pytest.mark.parametrize(
    ("algo", "settings", "says"),
    [
        ("ow-qmix", {"double_q": False}, "double_q"),
        ("iql", {"weighting": Weighted()}, "no joint value"),
        ("qtran-base", {"weighting": Weighted()}, "joint value is unrestricted"),
        ("vdn", {"num_envs": 64, "buffer_size": 63}, "buffer"),
        ("maddpg", {"num_envs": 64, "buffer_size": 63}, "buffer"),
    ],
)
def test_settings_that_do_not_fit(algo, settings, says):
    with pytest.raises(UserError, match=says):
        make(algo, **settings)


def test_messages_need_two_agents():
    with pytest.raises(UserError, match="has one agent"):
        td.Algorithm(make("maic"), probes.MATCH.spec)


@pytest.mark.parametrize("algo", ["ippo", "vdn", "cw-qmix", "qtran-alt", "maic-qplex", "maddpg"])
def test_a_run_of_any_learner_is_read_as_it_was_written(algo):
    run = Run(env="lbf:Foraging-5x5-2p-1f-v2", algo=algo, config=make(algo), steps=100)
    assert from_json(to_json(run), Run, source="here") == run


# --- Learning -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A learner that was trained in a probe environment."""

    world: probes.Probe
    learner: td.Learner

    def evaluate(self, time: int, signs: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """The greedy joint action and its values, at an episode's first step."""
        observation = self.world.see(self.world.moment(time, signs))
        actor, values = self.learner.actor, self.learner.networks.values
        initial_state, is_first = actor.initial_state(()), jnp.array(True)
        action = actor(observation, initial_state, is_first)[0].mode()
        outputs, _ = values.utilities(observation.obs, initial_state, is_first)
        outputs = values.utilities.communicate(outputs)
        return values.joint(outputs, action, observation), action


def train(world: probes.Probe, algo: str, updates: int = 150, **settings) -> Trained:
    config = make(algo, **SMALL | settings)
    steps = updates * config.num_envs * config.length(world.spec.limit)
    trainer = Trainer(world, config, seeds=(0,), steps=steps, eval_episodes=1)
    population, _ = trainer.advance(trainer.init(), steps)
    return Trained(
        world, jax.tree.map(lambda x: jnp.asarray(x[0]), trainer.export(population).learner)
    )


CASES = {
    "delayed reward": (
        probes.DELAY, "qmix",
        {"target": Soft(target_update_tau=0.1), "loss": Huber(huber_delta=0.5)}),
    "endless, cut at three steps": (probes.ENDLESS, "vdn", {"rollout_length": 2, "num_envs": 32}),
    "endless, whole episodes": (probes.ENDLESS, "iql", {"rollout_length": None}),
    "finite, over at three steps": (probes.FINITE, "qplex", {}),
    "forbidden temptation": (
        probes.TEMPTATION, "iql", {"optimizer": RMSProp(), "double_q": False}),
    "together": (probes.TOGETHER, "qmix", {"parameter_sharing": "separate"}),
    "matrix": (probes.MATRIX, "qplex", {}),
    "patience, GRU": (probes.PATIENCE, "ow-qmix", {
        "actor_network": "gru", "num_layers": 1, "last_action": True, "updates": 300}),
    "patience": (probes.PATIENCE, "cw-qmix", {"updates": 300}),
    "forbidden temptation, any joint value": (probes.TEMPTATION, "qtran-alt", {}),
    "patience, any joint value": (probes.PATIENCE, "qtran-base", {"updates": 300}),
    "together, by messages": (probes.TOGETHER, "maic", {"parameter_sharing": "separate"}),
    "matrix, by messages": (probes.MATRIX, "maic-qplex", {}),
    "kinds, in groups": (
        probes.KINDS, "qmix",
        {"parameter_groups": (0, 1, 0), "agent_ids": False, "updates": 300}),
}  # fmt: skip


SLOW = (
    "delayed reward",
    "endless, cut at three steps",
    "endless, whole episodes",
    "finite, over at three steps",
    "forbidden temptation",
    "patience",
    "patience, any joint value",
    "matrix, by messages",
    "kinds, in groups",
    "patience, GRU",
    "together",
    "together, by messages",
    "forbidden temptation, any joint value",
)


@pytest.mark.parametrize("case", cases(CASES, *SLOW))
def test_learns_the_known_values_and_actions(case):
    world, algo, settings = case
    trained = train(world, algo, **settings)
    recurrent = settings.get("actor_network") == "gru"
    for (time, signs), known in world.known.items():
        if recurrent and time:
            continue
        value, action = trained.evaluate(time, signs)
        np.testing.assert_allclose(value, known, atol=0.1, err_msg=f"time {time}, signs {signs}")
        if world.best is not None and time == world.length - 1:
            np.testing.assert_array_equal(action, world.best(signs))
        assert not set(action.tolist()) & set(world.forbidden)


PAYOFF = ((8.0, -12.0, -12.0), (-12.0, 0.0, 0.0), (-12.0, 0.0, 0.0))
GAME = probes.Probe(
    "relative overgeneralisation",
    probes.payoff(*PAYOFF),
    {(0, (1, 1)): 8.0},
    agents=2,
    actions=3,
)
"""Averaged over the other agent's actions, the best action has the lowest value (Son et al.,
2019)."""


def play_the_game(algo, seeds, updates=1500):
    """Learners of several seeds, and the returns of their greedy actions after uniformly random
    behaviour."""
    config = make(
        algo, **SMALL | {"rollout_length": 1, "num_envs": 32, "buffer_size": 1024, "lr": 3e-3}
    )
    trainer = Trainer(
        GAME, config, seeds=tuple(range(seeds)), steps=32 * updates, eval_episodes=1, vectorise=True
    )
    population, rows = trainer.advance(trainer.init(), 32 * updates)
    learner = jax.tree.map(jnp.asarray, trainer.export(population).learner)
    return learner, [row["return"] for row in rows]


def best_found(algo, seeds):
    """The number of seeds that find the best joint action."""
    return play_the_game(algo, seeds)[1].count(8.0)


@pytest.mark.slow
def test_a_sum_does_not_find_the_best_joint_action():
    assert best_found("vdn", seeds=4) == 0


@jax.jit
@jax.vmap
def conditions(learner):
    """D(s, a) of every joint action of the game, D(s, ā), and the joint values."""
    values, observation = learner.networks.values, GAME.see(GAME.moment(0, (1, 1)))
    outputs, _ = values.utilities(observation.obs, learner.actor.initial_state(()), jnp.array(True))
    greedy = outputs.values.argmax(-1)

    def compare(action):
        inputs = values.mixer_input(outputs, action, observation)
        return values.mixer.gap(inputs)[0], values.mixer(inputs)[0]

    every = jnp.stack(jnp.meshgrid(jnp.arange(3), jnp.arange(3), indexing="ij"), -1)
    gap, joint = jax.vmap(jax.vmap(compare))(every)
    return gap, compare(greedy)[0], joint


@pytest.mark.parametrize("algo", slow("qtran-base", "qtran-alt"))
def test_qtran_meets_its_conditions_and_finds_the_best_joint_action(algo):
    """Σᵢ Qᵢ + V = Q at the agents' own best actions, and nowhere less; by `alt` it is equal for one
    of each agent's actions, whatever the other does."""
    learner, returns = play_the_game(algo, seeds=3, updates=2500)
    assert returns == [8.0] * 3
    gap, at_best, joint = map(np.asarray, conditions(learner))
    np.testing.assert_allclose(joint, np.broadcast_to(PAYOFF, joint.shape), atol=0.2)
    np.testing.assert_allclose(at_best, 0.0, atol=0.2)
    assert gap.min() > -0.2
    if algo == "qtran-alt":
        np.testing.assert_allclose([gap.min(1), gap.min(2)], 0.0, atol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "least", "most"),
    [
        ("vdn", 0, 1),
        ("qmix", 0, 5),
        ("qplex", 18, 20),
        ("ow-qmix", 18, 20),
        ("cw-qmix", 18, 20),
        ("qtran-base", 18, 20),
        ("qtran-alt", 18, 20),
    ],
)
def test_twenty_seeds_of_the_game(algo, least, most):
    assert least <= best_found(algo, seeds=20) <= most


def test_masks_are_never_violated():
    config = make("qmix", **SMALL | {"epsilon_end": 0.3})
    _, _, trajectory = played(config, replace(probes.TEMPTATION, length=3))
    assert (trajectory.action != 0).all()
    assert (trajectory.action == 1).any()
    assert (trajectory.action == 2).any()


# --- Interruptions ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_restored_learner_goes_on_as_if_never_interrupted():
    config = make(
        "cw-qmix", **SMALL | {"actor_network": "gru", "num_layers": 1, "last_action": True}
    )
    trainer = Trainer(probes.PATIENCE, config, seeds=(3,), steps=10**4, eval_episodes=2)
    per_update = config.num_envs * config.rollout_length
    once, _ = trainer.advance(trainer.init(), 4 * per_update)
    half, _ = trainer.advance(trainer.init(), 2 * per_update)
    again, _ = trainer.advance(trainer.restore(trainer.export(half)), 4 * per_update)
    ours, theirs = (jax.tree.leaves(trainer.export(p).learner) for p in (once, again))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))
    assert trainer.export(once).learner.updates == 4 * config.updates_per_rollout


def test_every_recipe_of_value_decomposition_is_tried():
    tried = {algo for _, algo, _ in CASES.values()}
    assert tried == {algo for algo in RECIPES if isinstance(make(algo), TD)}
