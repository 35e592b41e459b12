"""A run's evaluations are those of the protocol, or as many as take a fifth of its steps."""

import pytest

import perla
from perla.methods.recipes import make
from perla.runs.spec import Run, plan_evaluations

ENV = "matrix:climbing-t10"


def planned(steps, **numbers):
    """The plan of a run whose episodes have at most 10 steps, and its share of the run's steps."""
    config = make("ippo", num_envs=2, rollout_length=5)
    run = Run(env=ENV, algo="ippo", config=config, steps=steps, **numbers)
    plan = plan_evaluations(run, perla.make(ENV))
    return len(plan.schedule) - 1, plan.episodes, plan.absolute, plan.total * 10 / steps


def test_a_long_run_is_evaluated_by_the_protocol():
    assert planned(1_000_000)[:3] == (50, 32, 320)


@pytest.mark.parametrize("steps", [190_000, 100_000, 50_000])
def test_evaluations_take_at_most_a_fifth_of_the_steps(steps):
    number, episodes, absolute, share = planned(steps)
    assert 10 <= number < 50
    assert episodes == 32
    assert 32 <= absolute < 320
    assert 0.15 < share <= 0.2


def test_episodes_are_fewer_only_where_few_evaluations_are_too_many():
    number, episodes, absolute, share = planned(12_000)
    assert number == 10
    assert 4 <= episodes < 32
    assert 8 <= absolute < 32
    assert share <= 0.2


def test_the_shortest_run_is_evaluated_too():
    assert planned(100)[:3] == (10, 4, 8)
    assert planned(30)[:3] == (3, 4, 8)


def test_numbers_that_are_asked_for_are_kept():
    numbers = {"num_evaluations": 5, "eval_episodes": 100, "absolute_episodes": 1000}
    for name, value in numbers.items():
        plan = dict(zip(numbers, planned(20_000, **{name: value}), strict=False))
        assert plan[name] == value
    assert planned(100, **numbers)[:3] == (5, 100, 1000)
