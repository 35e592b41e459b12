"""Policies that climb a fitted critic of the matrix games: the mean loses them, hope wins them."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from perla.envs.registry import make
from perla.methods.aggregators import Entropic, Max, Mean
from perla.overgeneralisation import balanced, outcomes, threshold


def game(agents, actions):
    return make(f"matrix:overgeneralisation-n{agents}-a{actions}")


def test_balanced_data_hold_every_payoff_equally_often():
    world = game(3, 4)
    joint, paid = balanced(world.table(), jax.random.key(0), 9_000)
    np.testing.assert_array_equal(world.payoff(joint), paid)
    levels, counts = np.unique(paid, return_counts=True)
    np.testing.assert_array_equal(levels, [-12, 0, 8])
    np.testing.assert_allclose(counts, 3_000, atol=200)
    nothing = np.asarray(joint)[np.asarray(paid) == 0]
    _, each = np.unique(nothing, axis=0, return_counts=True)
    assert len(each) == 27
    np.testing.assert_allclose(each, 3_000 / 27, atol=45)


@pytest.mark.parametrize(("agents", "found"), [(2, 0.375), (3, 0.4365), (5, 0.468), (20, 0.493)])
def test_the_mean_prefers_action_0_above_a_threshold(agents, found):
    assert threshold(agents) == pytest.approx(found, abs=6e-4)
    p = threshold(agents)
    assert 20 * p ** (agents - 1) == pytest.approx(12 * (1 - p) ** (agents - 1))


def test_the_mean_stays_safe_and_the_best_is_found():
    world = game(2, 3)
    np.testing.assert_array_equal(outcomes(world, Mean(), seeds=3), 0.0)
    np.testing.assert_array_equal(outcomes(world, Max(), seeds=3), 8.0)


@pytest.mark.slow
@pytest.mark.parametrize(("agents", "actions"), [(2, 3), (2, 15), (3, 3), (5, 3)])
def test_twenty_seeds(agents, actions):
    def reached(aggregator):
        return (outcomes(game(agents, actions), aggregator) == 8).sum()

    assert reached(Mean()) <= 1
    assert reached(Max()) >= 19
    assert reached(Entropic(eta=1.0)) >= 19
