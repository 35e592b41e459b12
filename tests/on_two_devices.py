"""Data-parallel training: `test_data_parallel.py` runs these tests with two devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import probes
from marks import cases, slow
from perla import parallel
from perla.algos.create import create
from perla.envs.wrappers import AutoReset
from perla.errors import UserError
from perla.loops.anakin import Trainer
from perla.loops.division import Division
from perla.loops.rollout import begin, rollout
from perla.methods.recipes import make
from perla.methods.settings import configure
from test_nonfinite import FAULTS, Faulty

COMMON, BY_ENV, BY_TIME_AND_ENV = (
    PartitionSpec(), PartitionSpec(parallel.AXIS), PartitionSpec(None, parallel.AXIS)
)  # fmt: skip
SIZE = {"num_envs": 4, "rollout_length": 6}
ONE_PASS = SIZE | {"update_epochs": 1, "num_minibatches": 1}
SMALL = {"hidden_size": 8, "num_layers": 1}
RECURRENT = {"actor_network": "gru", "critic_network": "gru"}
NORMALIZED = {"normalize_advantages": True, "normalize_rewards": True, "normalize_values": True}
LEARNERS = {
    "recurrent": ("mappo", SMALL | RECURRENT | NORMALIZED),
    "embedded": ("perla-ippo", SMALL | {"estimator": "exact"} | NORMALIZED),
    "target": ("coma", SMALL),
    "in turn": ("happo", SMALL),
    "one pass": ("ia2c", SMALL),
    "transformer": ("mat", {"hidden_size": 8}),
    "q": ("pqn-vdn", SMALL),
}
SLOW = ("target", "in turn", "one pass")
SAMPLED = ("perla-mappo", SMALL | RECURRENT | {"estimator": "sampled", "num_samples": "auto"})


@pytest.mark.parametrize("case", cases(LEARNERS, *SLOW))
def test_an_update_of_two_shares_is_one_of_the_whole(case):
    """Each device learns from half of the environments, and all learn as one that has all."""
    algo, settings = case
    config = configure(algo, "default", settings | ONE_PASS)
    env = AutoReset(probes.MORTAL, 4)
    whole = create(config, env.spec)
    half = create(config.replace(num_envs=2), env.spec)
    learner = whole.init(jax.random.key(0))
    started = begin(env, learner.actor, jax.random.key(1))
    _, trajectory, _ = rollout(env, learner.actor, started, jax.random.key(2), 6)

    def update(algorithm):
        def apply(learner, trajectory):
            return algorithm.update(learner, trajectory, jax.random.key(3), jnp.float32(0.5))

        return apply

    mesh = Mesh(np.array(jax.devices()), (parallel.AXIS,))
    layout = Division(mesh, whole.by_env).learner_layout(learner, BY_ENV)
    last = {"last": BY_ENV, "last_is_first": BY_ENV, "last_hidden_state": BY_ENV}
    fields = dict.fromkeys(trajectory._fields, BY_TIME_AND_ENV) | last
    by_env = type(trajectory)(**fields)._replace(  # An exploration rate has no environment axis.
        policy=jax.tree.map(lambda x: BY_TIME_AND_ENV if x.ndim > 1 else COMMON, trajectory.policy)
    )
    split = parallel.split(update(half), mesh, (layout, by_env), (layout, COMMON))
    expected, metrics = jax.jit(update(whole))(learner, trajectory)
    found, split_metrics = jax.jit(split)(learner, trajectory)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
    moved = [
        np.abs(np.asarray(a) - np.asarray(b)).max()
        for a, b in zip(jax.tree.leaves(learner), jax.tree.leaves(expected), strict=True)
        if a.size
    ]
    assert max(moved) > 1e-4
    for name in {"td_error", "entropy", "loss", "kl"} & set(metrics):
        np.testing.assert_allclose(split_metrics[name], metrics[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "vectorise"),
    [
        (SAMPLED, False),
        *slow((SAMPLED, True), (LEARNERS["in turn"], False), (LEARNERS["q"], True)),
    ],
)
def test_devices_keep_the_same_learner_and_resume(case, vectorise):
    """After updates on minibatches, everything that is not divided is equal to the bit on both
    devices; no update compiles anew; and restored states go on as they would have."""
    algo, settings = case
    config = configure(algo, "default", settings | SIZE | {"num_minibatches": 2})
    trainer = Trainer(
        probes.MORTAL, config, seeds=(0, 1), steps=10**4, eval_episodes=3, vectorise=vectorise,
        data_parallel=2,
    )  # fmt: skip
    population, _ = trainer.advance(trainer.init(), 3 * 24)
    programs, divided = trainer._train._cache_size(), 0
    for state in population:
        for x in jax.tree.leaves(state.unwrap_key()):
            first, second = (np.asarray(shard.data) for shard in x.addressable_shards)
            if x.sharding.is_fully_replicated:
                np.testing.assert_array_equal(first, second)
            else:
                divided += 1
    assert divided > 0
    exported = trainer.export(population)
    assert [x.shape for x in jax.tree.leaves(exported)] == [
        x.shape for x in jax.tree.leaves(trainer.template())
    ]
    undivided = Trainer(probes.MORTAL, config, seeds=(0, 1), steps=10**4)
    assert jax.tree.leaves(undivided.template()) == jax.tree.leaves(trainer.template())
    restored, other = trainer.advance(trainer.restore(exported), 5 * 24)
    population, metrics = trainer.advance(population, 5 * 24)
    assert metrics == other
    assert trainer._train._cache_size() == programs
    assert len(trainer.absolute(restored, 5)) == 2


def test_environments_of_the_devices_differ():
    """Both halves of the environments draw random numbers of their own."""
    config = make("ippo", **SMALL, **ONE_PASS)
    trainer = Trainer(probes.MATCH, config, seeds=(0,), steps=10**4, data_parallel=2)
    population = trainer.init()
    signs = []
    for update in range(1, 9):
        population, _ = trainer.train(population, 24 * update, 1)
        signs.append(np.asarray(population[0].runner_state.observation.obs).reshape(2, -1))
    assert any((first != second).any() for first, second in signs)


@pytest.mark.parametrize("environment", [0, 3])
def test_a_fault_on_one_device_stops_both(environment):
    """The fault is named with its agent and step, whichever device has the environment."""
    config = make("ippo", **SMALL, **SIZE)
    trainer = Trainer(Faulty(), config, seeds=(0,), steps=96, eval_episodes=2, data_parallel=2)
    exported = trainer.export(trainer.init())
    runner_state = exported.runner_state
    fault = np.zeros_like(runner_state.state.fault)
    fault[0, environment] = FAULTS.index("reward")
    runner_state = runner_state._replace(state=runner_state.state._replace(fault=fault))
    population = trainer.restore(exported._replace(runner_state=runner_state))
    population, steps = trainer.train(population, 96, 100)
    (fault,) = trainer.faults(population)
    assert steps == 96
    assert (fault.array, fault.agent, fault.step) == ("reward", 1, 16)


@pytest.mark.parametrize(
    ("algo", "settings", "count", "words"),
    [
        ("ippo", {"num_envs": 3}, 2, "data_parallel = 2: must divide num_envs = 3"),
        ("ippo", {"num_envs": 3}, 3, "has 2 devices here; set JAX_NUM_CPU_DEVICES=3"),
        ("vdn", {}, 2, "learner cannot divide its environments over devices"),
        ("ippo", {"num_minibatches": 4, "rollout_length": 1, "num_envs": 4}, 2, "num_minibatches"),
    ],
)
def test_refusals(algo, settings, count, words):
    with pytest.raises(UserError, match=words):
        Trainer(probes.MATRIX, make(algo, **settings), seeds=(0,), steps=9, data_parallel=count)


def test_memory_counts_every_device():
    """Each device has its environments and the whole learner."""
    config = make("ippo", **SMALL, **SIZE)
    one, two = (
        Trainer(probes.MATRIX, config, seeds=(0,), steps=9, data_parallel=n).footprint()
        for n in (1, 2)
    )
    assert two.environments == one.environments
    assert 1.9 * one.learner < two.learner <= 2 * one.learner
    assert 0.7 * one.training < two.training < 2.5 * one.training
    assert two.at_once == 1
