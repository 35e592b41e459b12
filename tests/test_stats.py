"""Statistics over seeds and tasks: equal to rliable's to nine digits, and cases by hand."""

from functools import partial

import numpy as np
import pytest
from rliable import library, metrics
from scipy.stats import binomtest

from perla.analysis import stats
from perla.analysis.stats import Score, bootstrap, indices, interval, iqm

RESAMPLES, SEED = 200, 3
TABLE = np.random.default_rng(0).uniform(size=(7, 3)).round(1)
"""Seven seeds, three tasks, with ties."""
OTHER = np.random.default_rng(1).uniform(size=(5, 3)).round(1)
CURVES = np.random.default_rng(2).uniform(size=(5, 3, 4))


@pytest.fixture
def rliable(monkeypatch):
    """Return rliable's estimate and interval, from the same resamples."""

    def estimate(statistic, *scores):
        drawn = indices(*(s.shape[:2] for s in scores), resamples=RESAMPLES, seed=SEED)
        order = iter([index[..., r] for r in range(RESAMPLES) for index in drawn])

        def choice(count, shape, replace):
            index = next(order)
            assert replace
            assert count == len(index)
            return np.broadcast_to(index.reshape(*index.shape, *[1] * (len(shape) - 2)), shape)

        monkeypatch.setattr(np.random, "choice", choice)
        points, intervals = library.get_interval_estimates(
            {"x": scores[0] if len(scores) == 1 else list(scores)},
            lambda *s: np.atleast_1d(statistic(*s)),
            reps=RESAMPLES,
        )
        assert next(order, None) is None
        return Score(points["x"], *intervals["x"])

    return estimate


def assert_same(ours, theirs):
    for name in Score._fields:
        ours_, theirs_ = np.atleast_1d(getattr(ours, name)), getattr(theirs, name)
        np.testing.assert_allclose(ours_, theirs_, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (stats.interquartile_mean, metrics.aggregate_iqm),
        (stats.mean, metrics.aggregate_mean),
        (stats.median, metrics.aggregate_median),
        (stats.optimality_gap, metrics.aggregate_optimality_gap),
        (
            partial(stats.optimality_gap, gamma=0.4),
            partial(metrics.aggregate_optimality_gap, gamma=0.4),
        ),
    ],
)
@pytest.mark.parametrize("scores", [TABLE, OTHER, TABLE[:1], TABLE[:, :1]])
def test_aggregates_are_rliables(ours, theirs, scores, rliable):
    score = bootstrap(ours, scores, resamples=RESAMPLES, seed=SEED)
    assert_same(score, rliable(theirs, scores))


@pytest.mark.parametrize("other", [OTHER, TABLE[::-1] + 0.05, TABLE])
def test_the_probability_of_improvement_is_rliables(other, rliable):
    score = stats.probability_of_improvement(TABLE, other, resamples=RESAMPLES, seed=SEED)
    assert_same(score, rliable(metrics.probability_of_improvement, TABLE, other))


def test_performance_profiles_are_rliables(rliable):
    taus = np.linspace(0, 1, 11)
    score = stats.performance_profile(TABLE, taus, resamples=RESAMPLES, seed=SEED)
    assert_same(score, rliable(lambda s: library.score_distributions(s, taus), TABLE))


def test_intervals_of_curves_are_rliables(rliable):
    score = bootstrap(stats.interquartile_mean, CURVES, resamples=RESAMPLES, seed=SEED)
    aggregate = metrics.aggregate_iqm
    theirs = rliable(lambda s: [aggregate(s[..., k]) for k in range(s.shape[-1])], CURVES)
    assert_same(score, theirs)


def test_an_interval_over_seeds_is_the_bootstrap_of_one_task():
    low, high = interval(CURVES[:, 0])
    assert low.shape == (4,)
    score = bootstrap(stats.interquartile_mean, CURVES[:, :1])
    np.testing.assert_array_equal([low, high], [score.low, score.high])


# --- By hand ------------------------------------------------------------------------------------


def test_the_interquartile_mean_cuts_a_quarter_from_either_end():
    assert iqm([1.0, 2.0, 4.0]) == pytest.approx(7 / 3)
    assert iqm([100.0, 1.0, 2.0, -9.0]) == 1.5
    assert iqm(range(9)) == 4.0
    np.testing.assert_array_equal(iqm([[0, 1], [2, 3]]), [1, 2])
    np.testing.assert_array_equal(iqm([[0, 1], [2, 3]], axis=1), [0.5, 2.5])


def test_over_two_axes_values_are_cut_together():
    assert iqm(TABLE, axis=(0, 1)) == iqm(TABLE.ravel())
    assert iqm([[0, 0, 0, 0], [4, 4, 4, 40]], axis=(0, 1)) == 2.0


def test_nan_is_not_cut_like_a_high_score():
    assert np.isnan(iqm([0.0, 1.0, 2.0, np.nan]))
    np.testing.assert_array_equal(iqm([[0, np.nan], [1, 1]]), [0.5, np.nan])


def test_aggregates_by_hand():
    scores = np.array([[0.0, 10.0, 20.0], [2.0, 10.0, 40.0]])
    assert stats.median(scores) == 10.0
    assert stats.mean(scores) == pytest.approx(41 / 3)
    assert stats.optimality_gap([[0.5, 2.0]]) == 0.25
    assert stats.optimality_gap([[0.5, 2.0]], gamma=2.0) == 0.75


def test_the_probability_of_improvement_by_hand():
    # 1 against 2 and 3: no, no. 3 against 2 and 3: yes, half.
    assert stats.improvement([[1.0], [3.0]], [[2.0], [3.0]]) == 0.375
    assert stats.improvement([[1.0, 1.0]], [[0.0, 0.0], [0.0, 2.0]]) == 0.75


def test_arrays_of_unlike_tasks_are_not_broadcast():
    with pytest.raises(ValueError, match="differ"):
        stats.improvement(TABLE, TABLE[:, :1])


def test_a_profile_by_hand():
    score = stats.performance_profile([[0.0, 0.5], [0.5, 1.0]], [-1.0, 0.0, 0.5, 1.0])
    np.testing.assert_array_equal(score.point, [1.0, 0.75, 0.25, 0.0])
    np.testing.assert_array_equal(score.low, [1.0, 0.5, 0.0, 0.0])
    np.testing.assert_array_equal(score.high, [1.0, 1.0, 0.5, 0.0])


def test_the_area_under_a_curve_by_hand():
    steps = [0, 10, 40]
    np.testing.assert_allclose(
        stats.area_under_curve(steps, [[0.0, 1.0, 1.0], [2.0, 2.0, 2.0]]), [0.875, 2.0]
    )
    np.testing.assert_array_equal(stats.area_under_curve([0], [[0.5], [1.0]]), [0.5, 1.0])


def test_steps_to_a_threshold_by_hand():
    values = [[0.0, 0.5, 0.4], [0.6, 0.0, 0.0], [0.0, 0.1, np.nan]]
    np.testing.assert_array_equal(stats.steps_to([0, 10, 40], values, 0.5), [10, 0, np.nan])


def test_failures_are_below_the_bound_or_no_number():
    assert stats.failures([[0.05, 0.1], [np.nan, 0.5]]) == 2
    assert stats.failures([-3.0, -1.0], bound=-2.0) == 1


# --- The bootstrap itself -----------------------------------------------------------------------


def test_seeds_are_resampled_within_tasks_and_independently():
    (drawn,) = indices((4, 2), resamples=500)
    assert drawn.shape == (4, 2, 500)
    assert set(drawn.ravel()) == {0, 1, 2, 3}
    assert (drawn[:, 0] != drawn[:, 1]).any()
    # Seeds that agree on every task leave nothing uncertain, however unlike the tasks are.
    assert bootstrap(stats.mean, [[0.0, 9.0], [0.0, 9.0]]) == Score(4.5, 4.5, 4.5)


def test_the_evaluations_of_a_resampled_seed_stay_together():
    rising = np.array([[[0.0, 1.0]], [[5.0, 6.0]]])
    score = bootstrap(lambda s: np.diff(s.mean((0, 1))), rising)
    assert (score.low, score.high) == (1.0, 1.0)


def test_the_seed_decides_the_interval():
    assert bootstrap(stats.mean, TABLE) == bootstrap(stats.mean, TABLE, seed=0)
    assert bootstrap(stats.mean, TABLE) != bootstrap(stats.mean, TABLE, seed=1)
    narrow = bootstrap(stats.mean, TABLE, level=0.5)
    wide = bootstrap(stats.mean, TABLE)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    samples = np.random.default_rng(0).normal(size=(30, 400, 1))
    scores = [bootstrap(stats.mean, samples[:, i], resamples=400) for i in range(400)]
    held = np.mean([score.low <= 0.0 <= score.high for score in scores])
    assert 0.88 < held < 0.98


@pytest.mark.parametrize(("wins", "episodes"), [(0, 20), (7, 20), (320, 320), (1, 1)])
def test_the_interval_of_a_share_is_wilsons(wins, episodes):
    known = binomtest(wins, episodes).proportion_ci(method="wilson")
    found = stats.proportion(wins, episodes)
    np.testing.assert_allclose((found.low, found.high), known, atol=1e-12)
    assert found.point == wins / episodes
