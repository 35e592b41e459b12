"""What is measured of the average while a method learns, against enumeration and by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perla.algos import telemetry
from perla.algos.values import MarginalSchedule, estimate
from perla.distributions import Categorical
from perla.envs.registry import make_env
from perla.errors import UserError
from perla.loops.anakin import Trainer
from perla.marginal.estimators import draw
from perla.methods.estimators import CANDIDATES, Exact, Sampled, candidates
from perla.methods.recipes import make
from perla.methods.values import Embedded, Multilinear
from test_marginal import CRITICS, enumerate_others, random_critic, spread

KEY = jax.random.key(3)
SCHEDULE = MarginalSchedule()


@pytest.fixture(scope="module")
def scene():
    net, context = random_critic(*CRITICS["mlp-local-shared-state-value-last"])
    logits = jax.random.normal(KEY, (*context.shape[:-1], 3))
    policy = Categorical(jax.nn.log_softmax(logits))
    return net, context, policy, policy.sample(KEY)


def looks(scene, value, count=1):
    """`count` independent looks, stacked."""
    net, context, policy, action = scene

    def one(key):
        key_estimate, key_look = jax.random.split(key)
        estimated = estimate(value, net, context, policy, key_estimate)
        return telemetry.look(value, net, context, policy, action, estimated, key_look, SCHEDULE)

    found = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(KEY, count))
    return jax.tree.map(np.asarray, found)


def test_the_spread_is_the_critics_variance_over_the_others(scene):
    net, context, policy, _ = scene
    expected = spread(net, context, policy)[..., 0] ** 2
    np.testing.assert_allclose(looks(scene, Embedded()).spread[0], expected, atol=1e-5)


def test_beyond_what_is_affordable_the_spread_is_drawn_without_bias(scene, monkeypatch):
    net, context, policy, _ = scene
    monkeypatch.setattr(telemetry, "AFFORDABLE", 0)
    found = looks(scene, Embedded(estimator=Sampled(num_samples=5)), 200)
    expected = spread(net, context, policy)[..., 0] ** 2
    assert found.spread.mean() == pytest.approx(expected.mean(), rel=0.05)
    assert found.error is None
    assert "decentralised" not in found.views


@pytest.mark.parametrize("sampler", ["iid", "latin"])
def test_noise_and_error_are_the_variance_of_the_estimate(scene, sampler):
    net, context, policy, _ = scene
    found = looks(scene, Embedded(estimator=Sampled(num_samples=7, sampler=sampler)), 1_000)
    exact = enumerate_others(net, context, policy)[..., 0]
    values = found.views["perla"].value
    variance = values.var(0).mean()
    assert ((values - exact) ** 2).mean() == pytest.approx(variance, rel=0.05)
    assert found.noise.mean() == pytest.approx(variance, rel=0.1)
    assert found.error.mean() == pytest.approx(variance, rel=0.1)


def test_what_is_exact_has_no_noise_to_report(scene):
    found = looks(scene, Embedded(estimator=Exact()))
    valid = jnp.ones(found.spread.shape[:-1], bool)
    assert set(telemetry.report(jax.tree.map(jnp.asarray, found), valid, 1.0)) == {"spread"}
    exact, own = found.views["decentralised"], found.views["perla"]
    np.testing.assert_array_equal(exact.value, own.value)


def test_effective_samples_are_the_number_of_independent_ones(scene):
    found = looks(scene, Embedded(estimator=Sampled(num_samples=7)), 1_000)
    valid = jnp.ones(found.spread.shape[:-1], bool)
    samples = telemetry.report(jax.tree.map(jnp.asarray, found), valid, 2.0)[
        "effective_samples"
    ].item()
    assert samples == pytest.approx(7, rel=0.1)


def test_the_gradients_variance_by_hand():
    """Two actions, one agent, two steps: g = A (1[a] − π)."""
    policy = Categorical(jnp.log(jnp.array([[[0.25, 0.75]], [[0.5, 0.5]]])))
    action, advantage = jnp.array([[0], [1]]), jnp.array([[2.0], [4.0]])
    valid = jnp.array([True, True])
    gradients = np.array([[1.5, -1.5], [-2.0, 2.0]])
    expected = ((gradients - gradients.mean(0)) ** 2).sum(-1).mean()
    found = telemetry.gradient_variance(policy, action, advantage, valid)
    assert found.item() == pytest.approx(expected)
    alone = telemetry.gradient_variance(policy, action, advantage, jnp.array([True, False]))
    assert alone.item() == pytest.approx(0.0, abs=1e-6)


def test_the_centralised_view_is_the_critic_at_the_joint_action(scene):
    net, context, _, action = scene
    view = looks(scene, Embedded()).views["centralised"]
    np.testing.assert_allclose(view.value[0], net.joint(context, action)[..., 0], atol=1e-6)


# --- In a run -----------------------------------------------------------------------------------


def metrics_of(env="matrix:overgeneralisation-n3-a3-t5", **value):
    config = make(
        "perla-ippo", value=Embedded(**value), actor_network="mlp", num_envs=4, hidden_size=16
    )
    trainer = Trainer(make_env(env), config, seeds=(0,), steps=400, eval_episodes=1)
    _, (metrics,) = trainer.advance(trainer.init(), 256)
    return metrics


def test_a_run_reports_it():
    metrics = metrics_of(estimator=Sampled(num_samples=5))
    assert metrics["joint_actions"] == 5
    assert metrics["average_flops"] > 0
    for name in ("centralised", "decentralised", "perla"):
        assert metrics[f"gradient_variance_{name}"] > 0
    assert {"spread", "marginal_noise", "marginal_error", "effective_samples"} <= set(metrics)


def test_a_closed_form_evaluates_no_joint_action():
    metrics = metrics_of(interaction=Multilinear(rank=4))
    assert metrics["joint_actions"] == 0
    assert "marginal_noise" not in metrics


# --- As many as it takes ------------------------------------------------------------------------


def test_the_ladder_has_the_values_of_k():
    rungs = candidates(Sampled(num_samples="auto", sampler="latin", gradient_samples=20))
    assert [candidate.k for candidate in rungs] == list(CANDIDATES)
    assert [candidate.gradient_k for candidate in rungs] == [2, 7, 20, 20, 20]
    assert candidates(Exact()) == (Exact(),)
    with pytest.raises(UserError, match=r"k = 'many': expected a whole number .* or one of auto"):
        Sampled(num_samples="many")


@pytest.mark.parametrize("candidate", [0, 3])
def test_a_rung_is_the_estimator_of_its_k(scene, candidate):
    net, context, policy, _ = scene
    value = Embedded(estimator=Sampled(num_samples="auto"))
    fixed_fields = Embedded(estimator=Sampled(num_samples=CANDIDATES[candidate]))
    found = estimate(
        value, net, context, policy, KEY, MarginalSchedule(candidate=jnp.int32(candidate))
    )
    expected = estimate(fixed_fields, net, context, policy, KEY)
    np.testing.assert_allclose(found.value, expected.value, atol=1e-6)


@pytest.mark.parametrize(
    ("noise", "samples", "allowed", "k"),
    [(1.0, 23, 1.0, 23), (1.0, 23, 1.01, 23), (1.0, 23, 0.9, 71), (1.0, 2, 1.0, 2)]
    + [(0.0, 211, 1.0, 2), (1.0, 23, 0.0, 211), (0.0, 23, 0.0, 2), (1.0, 71, 10.2, 7)],
)
def test_the_rung_is_the_first_that_is_near_enough(noise, samples, allowed, k):
    found = telemetry.candidate(*(jnp.float32(x) for x in (noise, samples, allowed)))
    assert CANDIDATES[found] == k


def test_a_run_chooses():
    """At first 23, then as few as there are: an error ten times the critic's is allowed."""
    samples = metrics_of(estimator=Sampled(num_samples="auto", tolerance=10.0))["joint_actions"]
    assert samples == (23 + 2) / 2


def test_draws_need_a_number(scene):
    with pytest.raises(AssertionError, match="one of its rungs"):
        draw(Sampled(num_samples="auto"), scene[2], KEY)


# --- What would have no effect ------------------------------------------------------------------


def test_a_tolerance_belongs_to_k_auto():
    with pytest.raises(UserError, match=r"tolerance = 0.2: belongs to k auto, and k is 5"):
        Sampled(num_samples=5, tolerance=0.2)


def test_gradients_flow_through_draws_only_where_the_marginal_is_fitted():
    with pytest.raises(UserError, match=r"gradient_k = 2 with fit 'joint'.*use fit 'marginal'"):
        metrics_of(estimator=Sampled(num_samples=5, gradient_samples=2), fit="joint")
