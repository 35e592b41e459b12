"""Diagnostics of the average over the others' actions, against enumeration and by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perla.algos import diagnostics
from perla.algos.values import MarginalSchedule, create_value
from perla.distributions import Categorical
from perla.envs.registry import make_env
from perla.errors import UserError
from perla.loops.anakin import Trainer
from perla.marginal.estimators import Adaptive, LatinSamples, create_estimator, create_samples
from perla.methods.estimators import CANDIDATES, Exact, Sampled
from perla.methods.recipes import make
from perla.methods.values import Embedded, Multilinear
from test_marginal import CRITICS, SPEC, draw, enumerate_others, estimate, random_critic, spread

KEY = jax.random.key(3)
SCHEDULE = MarginalSchedule()


@pytest.fixture(scope="module")
def scene():
    net, context = random_critic(*CRITICS["mlp-local-shared-state-value-last"])
    logits = jax.random.normal(KEY, (*context.shape[:-1], 3))
    policy = Categorical(jax.nn.log_softmax(logits))
    return net, context, policy, policy.sample(KEY)


def inspections(scene, settings, count=1):
    """`count` independent inspections, stacked."""
    net, context, policy, action = scene
    value = create_value(settings, SPEC)

    def one(key):
        key_estimate, key_inspection = jax.random.split(key)
        estimated = value.estimate(net, context, policy, key_estimate)
        mask = jnp.ones(policy.batch[:-1], bool)
        states = diagnostics.States(context, policy, action, estimated, estimated.value, mask)
        return diagnostics.inspect(value, net, states, key_inspection, SCHEDULE)

    found = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(KEY, count))
    return jax.tree.map(np.asarray, found)


def test_the_spread_is_the_critics_variance_over_the_others(scene):
    net, context, policy, _ = scene
    expected = spread(net, context, policy)[..., 0] ** 2
    np.testing.assert_allclose(inspections(scene, Embedded()).spread[0], expected, atol=1e-5)


def test_beyond_what_is_affordable_the_spread_is_drawn_without_bias(scene, monkeypatch):
    net, context, policy, _ = scene
    monkeypatch.setattr(diagnostics, "AFFORDABLE", 0)
    found = inspections(scene, Embedded(estimator=Sampled(num_samples=5)), 200)
    expected = spread(net, context, policy)[..., 0] ** 2
    assert found.spread.mean() == pytest.approx(expected.mean(), rel=0.05)
    assert found.error is None
    assert "decentralised" not in found.views


@pytest.mark.parametrize("sampler", ["iid", "latin"])
def test_noise_and_error_are_the_variance_of_the_estimate(scene, sampler):
    net, context, policy, _ = scene
    found = inspections(scene, Embedded(estimator=Sampled(num_samples=7, sampler=sampler)), 1_000)
    exact = enumerate_others(net, context, policy)[..., 0]
    values = found.views["perla"].value
    variance = values.var(0).mean()
    assert ((values - exact) ** 2).mean() == pytest.approx(variance, rel=0.05)
    assert found.noise.mean() == pytest.approx(variance, rel=0.1)
    assert found.error.mean() == pytest.approx(variance, rel=0.1)


def test_what_is_exact_has_no_noise_to_report(scene):
    found = inspections(scene, Embedded(estimator=Exact()))
    valid = jnp.ones(found.spread.shape[:-1], bool)
    assert set(diagnostics.report(jax.tree.map(jnp.asarray, found), valid, 1.0)) == {"spread"}
    exact, own = found.views["decentralised"], found.views["perla"]
    np.testing.assert_array_equal(exact.value, own.value)


def test_effective_samples_are_the_number_of_independent_ones(scene):
    found = inspections(scene, Embedded(estimator=Sampled(num_samples=7)), 1_000)
    valid = jnp.ones(found.spread.shape[:-1], bool)
    samples = diagnostics.report(jax.tree.map(jnp.asarray, found), valid, 2.0)[
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
    found = diagnostics.gradient_variance(policy, action, advantage, valid)
    assert found.item() == pytest.approx(expected)
    alone = diagnostics.gradient_variance(policy, action, advantage, jnp.array([True, False]))
    assert alone.item() == pytest.approx(0.0, abs=1e-6)


def test_the_centralised_view_is_the_critic_at_the_joint_action(scene):
    net, context, _, action = scene
    view = inspections(scene, Embedded()).views["centralised"]
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
    metrics = metrics_of(critic_model=Multilinear(rank=4))
    assert metrics["joint_actions"] == 0
    assert "marginal_noise" not in metrics


# --- As many as it takes ------------------------------------------------------------------------


def test_auto_chooses_from_the_candidates():
    settings = Sampled(num_samples="auto", sampler="latin", gradient_samples=20, tolerance=0.2)
    expected = zip(CANDIDATES, [2, 7, 20, 20, 20], strict=True)
    candidates = tuple(LatinSamples(k, through) for k, through in expected)
    assert create_estimator(settings, 3, 3) == Adaptive(candidates, 0.2)
    with pytest.raises(
        UserError, match=r"num_samples = 'many': expected a whole number .* or one of auto"
    ):
        Sampled(num_samples="many")


@pytest.mark.parametrize("candidate", [0, 3])
def test_a_candidate_is_the_estimator_of_its_number(scene, candidate):
    net, context, policy, _ = scene
    value = Embedded(estimator=Sampled(num_samples="auto"))
    fixed = Embedded(estimator=Sampled(num_samples=CANDIDATES[candidate]))
    found = estimate(
        value, net, context, policy, KEY, MarginalSchedule(candidate=jnp.int32(candidate))
    )
    expected = estimate(fixed, net, context, policy, KEY)
    np.testing.assert_allclose(found.value, expected.value, atol=1e-6)


@pytest.mark.parametrize(
    ("noise", "samples", "allowed", "k"),
    [(1.0, 23, 1.0, 23), (1.0, 23, 1.01, 23), (1.0, 23, 0.9, 71), (1.0, 2, 1.0, 2)]
    + [(0.0, 211, 1.0, 2), (1.0, 23, 0.0, 211), (0.0, 23, 0.0, 2), (1.0, 71, 10.2, 7)],
)
def test_the_candidate_is_the_first_that_is_near_enough(noise, samples, allowed, k):
    adaptive = create_samples(Sampled(num_samples="auto", tolerance=1.0))
    present = jnp.int32(CANDIDATES.index(samples))
    found = adaptive.next_candidate(present, jnp.float32(noise), jnp.float32(allowed))
    assert CANDIDATES[found] == k


def test_a_run_chooses():
    """At first 23, then as few as there are: an error ten times the critic's is allowed."""
    samples = metrics_of(estimator=Sampled(num_samples="auto", tolerance=10.0))["joint_actions"]
    assert samples == (23 + 2) / 2


def test_draws_need_a_number(scene):
    with pytest.raises(UserError, match="num_samples = auto: only a training run can choose it"):
        draw(Sampled(num_samples="auto"), scene[2], KEY)


# --- What would have no effect ------------------------------------------------------------------


def test_a_tolerance_belongs_to_k_auto():
    with pytest.raises(UserError, match=r"tolerance = 0.2: belongs to num_samples auto, .* is 5"):
        Sampled(num_samples=5, tolerance=0.2)


def test_gradients_flow_through_draws_only_where_the_marginal_is_fitted():
    with pytest.raises(
        UserError, match=r"gradient_samples = 2 with regress 'joint'.*use regress 'marginal'"
    ):
        metrics_of(estimator=Sampled(num_samples=5, gradient_samples=2), regress="joint")
