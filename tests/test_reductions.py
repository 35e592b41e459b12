"""What must be the same is the same: methods, seeds, devices and interruptions that make no
difference."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probes
from marks import slow
from perla.algos import ppo
from perla.envs.registry import make_env
from perla.envs.wrappers import AutoReset
from perla.loops.anakin import Trainer
from perla.loops.rollout import begin, rollout
from perla.methods.estimators import Exact, Sampled
from perla.methods.recipes import RECIPES, make
from perla.methods.values import Network

pytestmark = pytest.mark.xdist_group("reductions")

SMALL = probes.PLAIN | {
    "num_envs": 4,
    "rollout_length": 6,
    "hidden_size": 8,
    "update_epochs": 2,
    "lr": 1e-2,
    "init": "torch",
}
PER_UPDATE = SMALL["num_envs"] * SMALL["rollout_length"]


@pytest.fixture(scope="module", autouse=True)
def compiled_well():
    """As users' programs are: here bits are compared."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def compiled_quickly():
    """For programs that run for milliseconds, where no bit depends on how they are compiled."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# --- A method that reduces to another -----------------------------------------------------------


def layers(critic):
    """Its dense layers, from the lowest to the highest."""
    net = critic.body.net
    return (() if net.torso is None else net.torso.dense.layers) + net.head.layers


def weights(critic):
    return [layer.weight for layer in layers(critic)]


def biases(critic):
    return [layer.bias for layer in layers(critic)]


def rows_of_actions(plain, perla):
    """Whichever rows the policy-embedded critic has beside the plain one's."""
    pairs = zip(weights(plain), weights(perla), strict=True)
    (rows,) = [w[len(shared) :] for shared, w in pairs if len(w) > len(shared)]
    return rows


def learner_and_steps(algo, world, **settings):
    """A fresh learner, and what its actor does on the world."""
    algorithm = ppo.Algorithm(make(algo, **SMALL | settings), world.spec)
    copies = AutoReset(world, algorithm.config.num_envs)

    @jax.jit
    def run(key):
        learner = algorithm.init(key)
        scene = begin(copies, learner.actor, key)
        _, trajectory, _ = rollout(
            copies, learner.actor, scene, key, algorithm.config.rollout_length
        )
        return learner, trajectory

    return algorithm, *run(jax.random.key(0))


def embedded(algo, world, learner, estimator, joins, fill):
    """The policy-embedded counterpart of a learner: equal to it but for the critic's rows that
    read actions, which are `fill`."""
    value = (
        RECIPES[algo]
        .settings["value"]
        .replace(estimator=estimator, critic_model=Network(action_fusion=joins))
    )
    algorithm = ppo.Algorithm(make(algo, **SMALL, value=value), world.spec)
    theirs = jax.jit(algorithm.init)(jax.random.key(1)).critic
    assert len(rows_of_actions(learner.critic, theirs)) == world.agents * world.actions

    def transplant(shared, own):
        return jnp.concatenate([shared, jnp.full_like(own[len(shared) :], fill)])

    pairs = zip(weights(learner.critic), weights(theirs), strict=True)
    critic = eqx.tree_at(weights, theirs, [transplant(*pair) for pair in pairs])
    critic = eqx.tree_at(biases, critic, biases(learner.critic))
    optimiser = algorithm.critic_optimiser.init(critic)
    return algorithm, replace(learner, critic=critic, target=critic, critic_optimiser=optimiser)


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("algo", ["mappo", *slow("happo")])
def test_a_critic_that_goes_first_learns_what_it_learns_beside_the_actor(algo):
    """Where no advantage is refreshed, neither moves by what the other has become."""
    learners = {}
    for passes in (None, SMALL["update_epochs"], 5):
        algorithm, learner, steps = learner_and_steps(algo, probes.TOGETHER, critic_epochs=passes)
        update = jax.jit(algorithm.update)
        learners[passes], _ = update(learner, steps, jax.random.key(1), jnp.zeros(()))
    together, as_many, more = (learners[passes] for passes in learners)
    for name in ("actor", "critic"):
        ours, theirs = (jax.tree.leaves(getattr(one, name)) for one in (as_many, together))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6, err_msg=name)
    assert eqx.tree_equal(more.actor, as_many.actor)
    assert not eqx.tree_equal(more.critic, as_many.critic)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("algo", ["mappo", "coma", "happo"])
def test_refreshed_advantages_are_those_of_the_critic_that_went_first(algo):
    actors = []
    for passes in (1, 5):
        algorithm, learner, steps = learner_and_steps(
            algo, probes.TOGETHER, critic_epochs=passes, refresh_advantages=True
        )
        update = jax.jit(algorithm.update)
        after, _ = update(learner, steps, jax.random.key(1), jnp.zeros(()))
        actors.append(after.actor)
    assert not eqx.tree_equal(*actors)


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize(
    ("plain", "perla", "estimator", "joins"),
    [
        ("ippo", "perla-ippo", Exact(), "last"),
        *slow(("mappo", "perla-mappo", Sampled(num_samples=3), "first")),
    ],
)
def test_with_one_agent_perla_is_ppo(plain, perla, estimator, joins):
    ours, learner, steps = learner_and_steps(plain, probes.MATCH)
    # The rows that read the agent's own action are large: they would show.
    theirs, twin = embedded(perla, probes.MATCH, learner, estimator, joins, fill=5.0)
    ours_update, theirs_update = jax.jit(ours.update), jax.jit(theirs.update)
    for update in range(3):
        key, progress = jax.random.key(update), jnp.float32(0.0)
        learner, metrics = ours_update(learner, steps, key, progress)
        twin, embedded_metrics = theirs_update(twin, steps, key, progress)
        for name, value in metrics.items():
            np.testing.assert_allclose(embedded_metrics[name], value, atol=1e-4, err_msg=name)
        assert embedded_metrics["spread"] < 1e-3
    for a, b in zip(jax.tree.leaves(learner.actor), jax.tree.leaves(twin.actor), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for a, b in zip(weights(learner.critic), weights(twin.critic), strict=True):
        np.testing.assert_allclose(b[: len(a)], a, atol=1e-4)
    own = rows_of_actions(learner.critic, twin.critic)
    assert (own == 5.0).all(), "own actions were learnt from"


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("joins", ["last", *slow("first")])
@pytest.mark.parametrize("estimator", [Exact(), Sampled(num_samples=3)], ids=["exact", "sampled"])
def test_with_a_critic_blind_to_the_others_perla_is_ippo(estimator, joins):
    world = probes.PATIENCE
    ours, learner, steps = learner_and_steps("ippo", world)
    theirs, twin = embedded("perla-ippo", world, learner, estimator, joins, fill=0.0)

    def first_pass(algorithm):
        @jax.jit
        def compute(learner):
            key, schedule = jax.random.key(3), algorithm.schedule(learner, jnp.zeros(()))
            learner, batch, metrics = algorithm.prepare(learner, steps, key, schedule)
            loss = jax.grad(algorithm.critic_loss, has_aux=True)
            gradient, (advantage, _) = loss(learner.critic, learner, batch, key, schedule)
            return (batch.target, batch.prediction, advantage), gradient, metrics

        return compute

    arrays, gradient, _ = first_pass(ours)(learner)
    twin_arrays, twin_gradient, metrics = first_pass(theirs)(twin)
    for a, b in zip(arrays, twin_arrays, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert metrics["spread"] < 1e-6
    for a, b in zip(weights(gradient), weights(twin_gradient), strict=True):
        np.testing.assert_allclose(b[: len(a)], a, atol=1e-5)
    for a, b in zip(biases(gradient), biases(twin_gradient), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)


# --- Seeds, intervals, interruptions ------------------------------------------------------------


def trainer(seeds, **options):
    config = make("perla-ippo", **SMALL, value=RECIPES["perla-ippo"].settings["value"].replace(
        estimator=Sampled(num_samples=2)))  # fmt: skip
    return Trainer(
        probes.PATIENCE, config, seeds=seeds, steps=100 * PER_UPDATE, eval_episodes=2, **options
    )


@pytest.fixture(scope="module")
def eight():
    """Eight seeds, a computation each; and where they stand after four updates."""
    made = trainer(tuple(range(8)), vectorise=False)
    population, rows = made.advance(made.init(), 4 * PER_UPDATE)
    return made, made.export(population), rows


def same(a, b) -> bool:
    """Equal to the bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def without_best(progress):
    """All that training depends on: the best evaluation so far is only remembered."""
    return progress._replace(best_actor=None, best_return=None)


def test_one_seed_is_the_same_among_others(eight):
    _, among, rows = eight
    alone = trainer((3,), vectorise=False)
    population, (row,) = alone.advance(alone.init(), 4 * PER_UPDATE)
    assert same(alone.export(population), jax.tree.map(lambda x: x[3:4], among))
    assert row == rows[3]
    assert not same(*(jax.tree.map(lambda x, i=i: x[i], among.learner.actor) for i in (3, 4)))


@pytest.mark.usefixtures("compiled_quickly")
def test_seeds_together_are_seeds_apart(eight):
    """To rounding, after one update: beyond it a draw may fall on the other side of an edge."""
    made, *_ = eight
    together = trainer(tuple(range(8)), vectorise=True)
    ours, theirs = (t.export(t.advance(t.init(), PER_UPDATE)[0]) for t in (together, made))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_evaluating_more_often_changes_nothing(eight):
    made, once, _ = eight
    population = made.init()
    for updates in range(1, 5):
        population, _ = made.advance(population, updates * PER_UPDATE)
    assert same(without_best(made.export(population)), without_best(once))


def test_a_restored_population_goes_on_as_if_never_interrupted(eight):
    made, uninterrupted, rows = eight
    population, _ = made.advance(made.init(), 2 * PER_UPDATE)
    exported = made.export(population)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), exported) == jax.tree.map(
        lambda x: (x.shape, x.dtype), made.template()
    )
    population, rows_after = made.advance(made.restore(exported), 4 * PER_UPDATE)
    assert same(without_best(made.export(population)), without_best(uninterrupted))
    assert [row["return"] for row in rows_after] == [row["return"] for row in rows]


def test_intervals_of_any_length_are_compiled_once(eight, caplog):
    made, *_ = eight

    def compiled(function):
        return [r for r in caplog.records if "ompiling" in r.message and function in r.message]

    with jax.log_compiles():
        jax.jit(lambda marker: marker + 1)(jnp.ones(3))
        assert compiled("lambda"), "compilations are not logged where this test looks"
        population = made.init()
        for until in (1, 2, 5):
            population, _ = made.advance(population, until * PER_UPDATE)
        made.advance(made.restore(made.export(population)), 6 * PER_UPDATE)
    assert not compiled("_seed")


def test_an_interval_leaves_the_types_that_a_seed_begins_with():
    """A type that is weak at first, as in the state of a game, would compile all once more."""
    game = make_env("matrix:climbing")
    made = Trainer(game, make("ippo"), seeds=(0,), steps=100)
    begun = made._state_shapes
    until = jax.ShapeDtypeStruct((), jnp.int32)
    trained = jax.eval_shape(made._train_seed, begun, until, until, until)
    assert jax.tree.leaves(begun) == jax.tree.leaves(trained)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(begun))


@pytest.mark.parametrize(
    ("until", "updates"), [(4 * PER_UPDATE, 4), (4 * PER_UPDATE + 1, 5), (5 * PER_UPDATE - 1, 5)]
)
def test_steps_are_counted_once_and_updates_are_whole(eight, until, updates):
    made, *_ = eight
    population, rows = made.advance(made.init(), until)
    assert [row["step"] for row in rows] == [updates * PER_UPDATE] * 8
    exported = made.export(population)
    assert (exported.steps == updates * PER_UPDATE).all()
    assert (exported.learner.updates == updates).all()


# --- Devices ------------------------------------------------------------------------------------

ON_TWO_DEVICES = """
    import jax
    import numpy as np
    from test_reductions import PER_UPDATE, trainer

    jax.config.update("jax_disable_most_optimizations", True)
    first, second = jax.devices()

    def train(seeds, devices):
        made = trainer(tuple(range(seeds)), vectorise=True, devices=devices)
        population, _ = made.advance(made.init(), 2 * PER_UPDATE)
        used = {d for x in jax.tree.leaves(population[0].runner_state) for d in x.devices()}
        assert used == set(devices), f"{seeds} seeds use {used}"
        return jax.tree.leaves(made.export(population).learner)

    alone = train(3, [first])
    for seeds in (2, 3):  # spread over the devices by seed; by environments
        for a, b in zip(train(seeds, [first, second]), alone, strict=True):
            np.testing.assert_allclose(a, b[:seeds], atol=1e-4)
"""


@pytest.mark.slow
def test_two_devices_are_one():
    here = Path(__file__).parent
    environment = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": ":".join([str(here), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ON_TWO_DEVICES)],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
