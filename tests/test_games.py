"""The figure of the matrix games: its claims from made-up results, and its data distributions."""

import json

import numpy as np
import pytest

from perla.cli import main
from perla.config import tag
from perla.envs import matrix
from perla.experiments.cache import file_name
from perla.experiments.matrix import figure1
from perla.experiments.matrix.data_distributions import DATA_DISTRIBUTIONS, outcomes
from perla.experiments.matrix.figure1 import (
    AGGREGATORS,
    CLAIMS,
    FITTED,
    METHODS,
    Claim,
    GameResult,
    Size,
)
from perla.experiments.matrix.fitted_critic import FIT
from perla.methods.ppo import PPO
from perla.methods.recipes import RECIPES, make

LEARNERS = [method for method in METHODS if method not in FITTED]

SIZE = Size(2, 1, (2, 3), (3, 15), ("ippo", "vdn"))
FINDS = Claim("they find it", ("ippo", "vdn"), True, "agents")


def results(data, **payoffs):
    """Payoffs of methods in the games of the axis of agents, the first game first."""
    return [
        GameResult(method, data, game, list(by_seed))
        for method, by_game in payoffs.items()
        for game, by_seed in zip(SIZE.axis("agents"), by_game, strict=True)
    ]


ALWAYS, NEVER, HALF = (8.0, 8.0), (0.0, -12.0), (8.0, 0.0)


@pytest.mark.parametrize(
    ("claim", "ippo", "vdn", "verdict"),
    [
        (FINDS, (ALWAYS, ALWAYS), (ALWAYS, ALWAYS), "holds"),
        (FINDS, (ALWAYS, HALF), (ALWAYS, ALWAYS), "holds in part"),
        (FINDS, (ALWAYS, HALF), (NEVER, ALWAYS), "does not hold"),
        (FINDS._replace(first=True), (ALWAYS, NEVER), (ALWAYS, NEVER), "holds"),
        (FINDS._replace(finds=False), (ALWAYS, NEVER), (ALWAYS, NEVER), "holds"),
        (FINDS._replace(finds=False), (ALWAYS, NEVER), (NEVER, ALWAYS), "holds"),
        (FINDS._replace(finds=False), (ALWAYS, ALWAYS), (ALWAYS, NEVER), "holds in part"),
        (FINDS._replace(finds=False), (ALWAYS, HALF), (ALWAYS, ALWAYS), "does not hold"),
        (FINDS._replace(finds=False), (HALF, NEVER), (NEVER, NEVER), "not tested"),
    ],
)
def test_a_claim_is_judged_by_the_share_of_seeds(claim, ippo, vdn, verdict):
    found = results("uniform", ippo=ippo, vdn=vdn)
    assert figure1.judge(claim, "uniform", found, SIZE)["verdict"] == verdict


def test_a_method_that_never_finds_it_cannot_lose_it():
    found = results("uniform", ippo=(NEVER, NEVER), vdn=(ALWAYS, HALF))
    row = figure1.judge(FINDS._replace(finds=False), "uniform", found, SIZE)
    assert row["found"] == "vdn 100% → 50%; not found at first by ippo"


def test_only_methods_that_can_learn_from_a_distribution_are_judged_with_it():
    found = results("uniform", vdn=(ALWAYS, ALWAYS))
    row = figure1.judge(FINDS, "uniform", found, SIZE)
    assert row["found"] == "vdn 100%"
    assert figure1.judge(FINDS, "on-policy", found, SIZE) == {}


def test_every_claim_is_about_known_methods():
    assert {name for claim in CLAIMS for name in claim.methods} <= set(METHODS)
    assert {name.split()[0] for name in LEARNERS} <= set(RECIPES)
    for method in LEARNERS:
        assert figure1.config(method, (2, 3)).rollout_length == 1


def test_all_methods_see_as_many_joint_actions_and_take_as_many_steps():
    settings = [figure1.config(method, (5, 3)) for method in LEARNERS]
    assert {each.num_envs for each in settings} == {FIT.num_envs}
    steps = {
        each.update_epochs * each.num_minibatches
        if isinstance(each, PPO)
        else each.updates_per_rollout
        for each in settings
        if each != figure1.config("coma", (5, 3))
    }
    assert steps == {FIT.updates_per_rollout}


def test_aggregates_of_a_critic_differ_in_nothing_else():
    mean, *optimistic = (figure1.config(f"perla-ippo {tag(each)}", (10, 3)) for each in AGGREGATORS)
    for settings, aggregator in zip(optimistic, AGGREGATORS[1:], strict=True):
        value = settings.value.replace(aggregator=AGGREGATORS[0])
        assert settings != mean == settings.replace(value=value), aggregator


def test_exploration_falls_over_the_first_half():
    settings, *_ = figure1.create_job(("vdn",), (2, 3), SIZE._replace(collections=100)).depends
    assert json.loads(settings)["epsilon_decay_steps"] == 100 * 32 / 2


def test_a_critic_is_fitted_once_for_all_its_aggregates():
    size = SIZE._replace(methods=METHODS)
    groups = figure1.group_methods(size)
    assert [methods for methods in groups if len(methods) > 1] == [FITTED]
    names = [file_name(figure1.create_job(methods, (2, 3), size)) for methods in groups]
    assert len(set(names)) == len(METHODS) - len(FITTED) + 1
    fewer = figure1.create_job(FITTED[:1], (2, 3), size)
    assert file_name(fewer) not in names


def test_vdn_learns_the_means_of_its_data_distribution():
    """Under uniform data action 0 pays less than the others (−5.3 against −4 on average), under
    payoff-balanced data more (1.3 against −4)."""
    game = matrix.make_env("overgeneralisation-n2-a3")
    config = make("vdn", **figure1.REPLAYING | {"hidden_size": 16})
    earned = outcomes(game, config, DATA_DISTRIBUTIONS[1:], seeds=2, collections=250)
    np.testing.assert_array_equal(earned, [[0.0, 0.0], [8.0, 8.0]])


@pytest.mark.slow
def test_smoke(tmp_path, capsys):
    command = ["reproduce", "matrix", "--scale", "smoke", "--out", str(tmp_path)]
    assert main([*command, "--processes", "1"]) == 0
    said = capsys.readouterr().out
    verdict = json.loads((tmp_path / "matrix" / "verdict.json").read_text())
    assert verdict["verdict"] == "not tested"
    lines = {(row["method"], row["regime"]) for row in verdict["rows"]}
    assert len(lines) == 1 + 1 + 2 + 3
    assert all(row["claim"] in " ".join(said.split()) for row in verdict["claims"])
    assert {path.stem for path in (tmp_path / "matrix").glob("*.png")} == set(DATA_DISTRIBUTIONS)
