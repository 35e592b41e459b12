"""The figure of the matrix games: its claims from made-up results, and what a regime is."""

import json

import numpy as np
import pytest

from perla.cli import main
from perla.envs import matrix
from perla.methods.recipes import RECIPES, make
from perla.regimes import REGIMES, outcomes
from perla.suites import games
from perla.suites.games import CLAIMS, METHODS, Cell, Claim, Size
from perla.suites.parts import place

SIZE = Size(2, 1, (2, 3), (3, 15), ("ippo", "vdn"))
FINDS = Claim("they find it", ("ippo", "vdn"), True, "agents")


def cells(regime, **earned):
    """What methods earn in the games of the axis of agents, the first one's seeds first."""
    return [
        Cell(method, regime, game, list(paid))
        for method, paids in earned.items()
        for game, paid in zip(SIZE.axis("agents"), paids, strict=True)
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
        (FINDS._replace(finds=False), (NEVER, ALWAYS), (ALWAYS, NEVER), "holds in part"),
        (FINDS._replace(finds=False), (NEVER, HALF), (NEVER, ALWAYS), "does not hold"),
    ],
)
def test_a_claim_is_judged_by_the_share_of_seeds(claim, ippo, vdn, verdict):
    found = cells("uniform", ippo=ippo, vdn=vdn)
    assert games.judge(claim, "uniform", found, SIZE)["verdict"] == verdict


def test_only_those_that_can_learn_from_a_regime_are_judged_under_it():
    found = cells("uniform", vdn=(ALWAYS, ALWAYS))
    row = games.judge(FINDS, "uniform", found, SIZE)
    assert row["found"] == "vdn 100%"
    assert games.judge(FINDS, "on-policy", found, SIZE) == {}


def test_every_claim_is_about_methods_that_there_are():
    assert {name for claim in CLAIMS for name in claim.methods} <= set(METHODS)
    assert {name.split()[0] for name in METHODS} <= set(RECIPES)
    for method in METHODS:
        assert games.config(method, (2, 3)).horizon == 1


def test_all_methods_see_as_many_joint_actions():
    assert len({games.config(method, (5, 3)).copies for method in METHODS}) == 1


def test_exploration_falls_over_the_first_half():
    settings, *_ = games.part("vdn", (2, 3), REGIMES, SIZE._replace(collections=100)).depends
    assert json.loads(settings)["epsilon_steps"] == 100 * 32 / 2


def test_what_climbs_a_fitted_critic_is_the_same_whichever_method_it_is_for():
    def parts(method):
        return [games.part(method, (2, 3), data, SIZE) for data in games.shares(method)]

    alone, *fitted = map(place, parts("perla-ippo"))
    alone_too, *fitted_too = map(place, parts("perla-mappo"))
    assert fitted == fitted_too
    assert len({alone, alone_too, *fitted, *map(place, parts("perla-ippo max"))}) == 5


def test_a_sum_learns_by_rows_what_its_regime_shows():
    """Under uniform data action 0 pays less than the others (−5.3 against −4 on average), under
    balanced data more (1.3 against −4)."""
    game = matrix.make("overgeneralisation-n2-a3")
    config = make("vdn", **games.REPLAYING | {"hidden": 16})
    earned = outcomes(game, config, REGIMES[1:], seeds=2, collections=250)
    np.testing.assert_array_equal(earned, [[0.0, 0.0], [8.0, 8.0]])


def test_smoke(tmp_path, capsys):
    command = ["reproduce", "matrix", "--scale", "smoke", "--out", str(tmp_path)]
    assert main([*command, "--processes", "1"]) == 0
    said = capsys.readouterr().out
    verdict = json.loads((tmp_path / "matrix" / "verdict.json").read_text())
    assert verdict["verdict"] == "not tested"
    lines = {(row["method"], row["regime"]) for row in verdict["rows"]}
    assert len(lines) == 1 + 3 + 3
    assert all(row["claim"] in " ".join(said.split()) for row in verdict["claims"])
    assert {path.stem for path in (tmp_path / "matrix").glob("*.png")} == set(REGIMES)
