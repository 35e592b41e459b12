"""Aggregators against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from perla.errors import UserError
from perla.marginal.aggregators import create_aggregator, entropic
from perla.marginal.joint_actions import Draws
from perla.methods.aggregators import Entropic, Max, Mean, UpperQuantile
from perla.methods.recipes import RECIPES, make

VALUES = np.array([3.0, -1.0, 7.0, 7.5, 0.0])
WEIGHTS = np.array([0.1, 0.4, 0.2, 0.0, 0.3])


def of(settings, optimism=1.0):
    """The aggregate of the five values, for one agent and output."""
    draws = Draws(jnp.arange(5)[:, None], jnp.asarray(WEIGHTS, float)[:, None])
    table = jnp.asarray(VALUES, float)
    aggregator = create_aggregator(settings)
    return float(aggregator(lambda joint: table[joint][:, None], draws, optimism)[0, 0])


def test_mean():
    assert of(Mean()) == pytest.approx(WEIGHTS @ VALUES, rel=1e-6)


@pytest.mark.parametrize("eta", [1e-3, 0.1, 1.0, 5.0])
def test_entropic(eta):
    expected = np.log(WEIGHTS @ np.exp(eta * VALUES)) / eta
    assert of(Entropic(eta=eta)) == pytest.approx(expected, rel=1e-5)


def test_entropic_goes_from_the_mean_to_the_best():
    assert of(Entropic(eta=1e-9)) == pytest.approx(of(Mean()), abs=1e-5)
    assert of(Entropic(eta=1e4)) == pytest.approx(7.0, abs=1e-3)
    annealed = Entropic(eta=3.0, anneal_eta=True)
    assert of(annealed, optimism=1.0) == of(Entropic(eta=3.0), optimism=0.2)
    assert of(annealed, optimism=0.5) == pytest.approx(of(Entropic(eta=1.5)))
    assert of(annealed, optimism=0.0) == pytest.approx(of(Mean()), abs=1e-5)


def test_entropic_is_finite_whatever_the_scale():
    x = jnp.asarray([[1e6], [-1e6]], float)
    assert float(entropic(x, jnp.full((2, 1), 0.5), 1.0)[0]) == pytest.approx(1e6, rel=1e-5)


@pytest.mark.parametrize(
    ("q", "expected"), [(0.0, -1.0), (0.4, -1.0), (0.41, 0.0), (0.7, 0.0), (0.75, 3.0), (1.0, 7.0)]
)
def test_quantile(q, expected):
    assert of(UpperQuantile(quantile=q)) == expected


def test_the_best_has_some_probability():
    assert of(Max()) == 7.0


@pytest.mark.parametrize("aggregator", [Entropic(), UpperQuantile(), Max()])
def test_an_optimistic_aggregate_is_not_what_is_regressed(aggregator):
    from perla.algos.ppo import Algorithm
    from perla.envs.protocol import Spec

    spec = Spec("two", 2, 3, 3, (2, 2), 10, "common")
    value = RECIPES["perla-ippo"].settings["value"].replace(aggregator=aggregator)
    with pytest.raises(UserError, match=r"with regress 'marginal'.*use regress 'joint'"):
        Algorithm(make("perla-ippo", value=value), spec)
    Algorithm(make("perla-ippo", value=value.replace(regress="joint")), spec)
