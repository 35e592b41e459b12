"""The paper's experiments: verdicts from made-up results, and each at scale `smoke`."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from marks import slow
from perla.analysis.load import Budget, Curves
from perla.cli import main
from perla.errors import UserError
from perla.experiments import catalogue, verdicts
from perla.experiments.catalogue import EXPERIMENTS, MAPS
from perla.experiments.experiment import SCALES, Calculation, Experiment, Findings, Verdict
from perla.suites.cost import Costs

TRAINED = [name for name, found in EXPERIMENTS.items() if isinstance(found, Experiment)]
STEPS = np.array([0.0, 50.0, 100.0])


def curves(method, env, final, *, middle=None, error=1.0, agents=2, seeds=5):
    """A run whose sampled return rises to `final`, within a hundredth over seeds."""
    middle = final / 2 if middle is None else middle
    offsets = np.linspace(-0.01, 0.01, seeds)[:, None]
    returns = np.array([[0.0, middle, final]]) + offsets
    last = dict.fromkeys(("return_sampled", "return", "win_rate"), returns[:, -1])
    return Curves(
        path=Path(f"/nowhere/{method}"),
        method=method,
        algo=method.split()[0],
        preset="default",
        env=env,
        environment={"id": env, "agents": agents, "rules": {}},
        budget=Budget(100, seeds, 2, 32, 320),
        seeds=tuple(range(seeds)),
        dropped=(),
        steps=STEPS,
        metrics={
            "return": returns,
            "return_sampled": returns,
            "win_rate": returns,
            "td_error": np.full_like(returns, error) * (1 + offsets),
            "wall_seconds": np.tile(STEPS, (seeds, 1)),
        },
        final=last,
        best=last,
        absolute=last,
        flops_per_step=1e6,
        finished=True,
    )


def four(finals, *, maps=MAPS[:2], **rest):
    return [
        curves(m, env, f, **rest)
        for env in maps
        for m, f in zip(catalogue.FOUR, finals, strict=True)
    ]


def status(name, runs):
    return EXPERIMENTS[name].judge(runs).status


@pytest.mark.parametrize(
    ("finals", "expected"),
    [
        ((0.5, 0.5, 0.8, 0.8), "holds"),
        ((0.5, 0.5, 0.8, 0.5), "holds in part"),
        ((0.5, 0.5, 0.8, 0.2), "does not hold"),
        ((0.5, 0.5, 0.5, 0.5), "does not hold"),
        ((0.8, 0.8, 0.5, 0.5), "does not hold"),
    ],
)
def test_lbf(finals, expected):
    assert status("lbf", four(finals)) == expected


def test_a_method_that_is_behind_in_one_is_not_ahead():
    slow_but_better = [
        curves("ippo", MAPS[0], 0.5, middle=0.5),
        curves("perla-ippo", MAPS[0], 0.6, middle=0.0),
    ]
    assert verdicts.better(slow_but_better, "perla-ippo", "ippo")[0] == 0
    fast_and_equal = [
        curves("ippo", MAPS[0], 0.5, middle=0.1),
        curves("perla-ippo", MAPS[0], 0.5, middle=0.4),
    ]
    assert verdicts.better(fast_and_equal, "perla-ippo", "ippo")[0] == 1
    assert verdicts.better(fast_and_equal, "ippo", "perla-ippo")[0] == -1


@pytest.mark.parametrize(
    ("finals", "expected"),
    [
        ((0.05, 0.05, 0.9, 0.9), "holds"),
        ((0.05, 0.9, 0.05, 0.9), "does not hold"),
        ((0.9, 0.05, 0.9, 0.9), "not tested"),
    ],
)
def test_failures(finals, expected):
    assert status("failures", four(finals)) == expected


def test_failures_in_part():
    maps = MAPS[:2]
    runs = four((0.05, 0.05, 0.05, 0.9), maps=maps[:1]) + four(
        (0.05, 0.05, 0.9, 0.9), maps=maps[1:]
    )
    assert status("failures", runs) == "holds in part"
    assert verdicts.failed_maps(runs, "ippo") == 2


@pytest.mark.parametrize(
    ("finals", "expected"),
    [
        ((0.5, 0.5, 0.8), "holds"),
        ((0.5, 0.5, 0.55), "holds in part"),
        ((0.5, 0.5, 0.5), "does not hold"),
    ],
)
def test_full_observability(finals, expected):
    methods = ("ippo", "mappo", "perla-ippo")
    runs = [curves(m, MAPS[0], f) for m, f in zip(methods, finals, strict=True)]
    assert status("full-observability", runs) == expected


@pytest.mark.parametrize(
    ("base", "perla", "expected"),
    [
        ((0.5, 0.05, 0.02), (0.6, 0.5, 0.9), "holds"),
        ((0.5, 0.5, 0.4), (0.6, 0.7, 0.9), "holds in part"),
        ((0.5, 0.5, 0.5), (0.9, 0.5, 0.4), "does not hold"),
    ],
)
def test_scaling(base, perla, expected):
    runs = []
    for n, b, p in zip((2, 5, 8), base, perla, strict=True):
        env = f"lbf:Foraging-10x10-{n}p-1f-coop-v2"
        runs += [curves(m, env, b, agents=n) for m in ("ippo", "mappo")]
        runs.append(curves("perla-ippo", env, p, agents=n))
    assert status("scaling", runs) == expected


def test_cumulative_error_is_the_area_under_the_error():
    run = curves("ippo", MAPS[0], 0.5, error=2.0, seeds=1)
    run = replace(run, metrics=run.metrics | {"td_error": np.array([[np.nan, 2.0, 3.0]])})
    np.testing.assert_allclose(verdicts.cumulative_error(run), [[0.0, 100.0, 250.0]])


@pytest.mark.parametrize(
    ("errors", "expected"),
    [((2, 2, 1, 1), "holds"), ((2, 2, 1, 2), "holds in part"), ((2, 2, 1, 3), "does not hold")],
)
def test_variance(errors, expected):
    runs = [
        curves(m, MAPS[0], 0.5, error=float(e)) for m, e in zip(catalogue.FOUR, errors, strict=True)
    ]
    assert status("variance", runs) == expected


@pytest.mark.parametrize(
    ("finals", "expected"),
    [
        ((0.2, 0.3, 0.5, 0.6, 0.6), "holds"),
        ((0.2, 0.3, 0.5, 0.6, 0.9), "holds in part"),
        ((0.5, 0.5, 0.5, 0.5, 0.5), "does not hold"),
    ],
)
def test_samples(finals, expected):
    k = (5, 10, 50, 100, 250)
    runs = [
        curves(f"perla-ippo num_samples={n}", MAPS[0], f) for n, f in zip(k, finals, strict=True)
    ]
    assert list(verdicts.areas_by_samples(runs)) == list(k)
    assert status("samples", runs) == expected


@pytest.mark.parametrize(
    ("finals", "expected"),
    [((0.9, 0.5), "holds"), ((0.5, 0.505), "holds in part"), ((0.5, 0.9), "does not hold")],
)
def test_grid(finals, expected):
    labels = (
        "perla-ippo actor_network=mlp num_samples=100",
        "perla-ippo actor_network=gru num_samples=100",
    )
    runs = [curves(label, MAPS[0], f) for label, f in zip(labels, finals, strict=True)]
    assert status("grid", runs) == expected


@pytest.mark.parametrize("name", [*(name for name in TRAINED if name != "grid"), *slow("grid")])
def test_every_experiment_is_whole(name):
    experiment = EXPERIMENTS[name]
    for scale in SCALES:
        runs = [cell.run for cell in experiment.cells(scale)]
        # Equal budgets, and enough seeds to say anything.
        assert (
            len({(run.steps, run.seeds, run.num_evaluations, run.eval_episodes) for run in runs})
            == 1
        )
        assert len(runs[0].seeds) >= 3
    preset = "paper-smac" if experiment.families else "paper-lbf"
    assert {cell.run.preset for cell in experiment.cells("paper")} == {preset}


@pytest.mark.slow
def test_the_papers_grid_is_tables_3_and_4():
    cells = EXPERIMENTS["grid"].cells("paper")
    assert len(cells) == 2 * 3 * 2 * 2 * 2 * 3 * 2 * 2 * 2
    assert sum(cell.varied == catalogue.TABLE_4 for cell in cells) == 2


def test_experiments_share_cells():
    cells = {
        name: {cell.folder for cell in EXPERIMENTS[name].cells("quick")}
        for name in ("lbf", "failures", "full-observability")
    }
    assert cells["failures"] == cells["lbf"]
    assert cells["full-observability"] < cells["lbf"]


def test_smac_is_judged_by_win_rates():
    maps = catalogue.SMAC_MAPS
    assert status("smac", four((0.5, 0.5, 0.8, 0.8), maps=maps)) == "holds"
    assert status("failures-smac", four((0.05, 0.5, 0.8, 0.8), maps=maps)) == "holds"
    assert "final win rate" in EXPERIMENTS["smac"].judge(four((0.5,) * 4, maps=maps)).reason


def test_another_family_has_the_same_maps_and_no_other_experiment_has_one(capsys):
    ours, theirs = (EXPERIMENTS["smac"].cells("paper", family) for family in (None, "smac"))
    assert [cell.run.env.split(":")[1] for cell in ours] == [
        cell.run.env.split(":")[1] for cell in theirs
    ]
    assert {cell.run.env.split(":")[0] for cell in theirs} == {"smac"}
    assert len({cell.run.env for cell in ours}) == 15
    for name, family, message in (
        ("smac", "smax", "unknown family of this experiment 'smax'; did you mean 'smac'?"),
        ("lbf", "smac", "family smac: this experiment has one family"),
        ("theory", "smac", "family smac: a calculation has no environments"),
    ):
        assert main(["reproduce", name, "--family", family, "--dry-run"]) == 2
        assert message in capsys.readouterr().err


def test_a_part_of_an_experiment_has_the_named_environments(capsys):
    envs = ("skirmish:8m", "skirmish:3m")
    cells = EXPERIMENTS["smac"].cells("quick", None, envs)
    assert {cell.run.env for cell in cells} == set(envs)
    assert len(cells) == 8
    for name, env, message in (
        ("smac", "skirmish:3n", "unknown environment of this experiment 'skirmish:3n'; did you"),
        ("theory", "skirmish:3m", "env skirmish:3m: a calculation has no environments"),
        ("all", "skirmish:3m", "--env: is for one experiment"),
    ):
        assert main(["reproduce", name, "--env", env, "--dry-run"]) == 2
        assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder for all experiments, so that shared cells are carried out once."""
    return tmp_path_factory.mktemp("smoke")


@pytest.mark.xdist_group("smoke")
@pytest.mark.parametrize("name", ["lbf", *slow(*(name for name in TRAINED if name != "lbf"))])
def test_smoke(name, out, capsys):
    assert main(["reproduce", name, "--scale", "smoke", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    verdict = json.loads((out / name / "verdict.json").read_text())
    assert verdict["verdict"] == "not tested"
    assert verdict["claim"] in " ".join(said.split())
    assert len(list((out / name).glob("*.png"))) == len(list((out / name).glob("*.svg"))) > 0
    assert json.loads((out / name / "summary.json").read_text())["methods"]
    assert json.loads((out / name / "marl_eval.json").read_text())


@pytest.mark.xdist_group("smoke")
def test_a_part_at_smoke(out, capsys):
    """A part is judged alone, and its runs are those of the whole."""
    first, *_ = EXPERIMENTS["lbf"].suites["smoke"].cells()
    command = ["reproduce", "lbf", "--scale", "smoke", "--out", str(out), "--env", first.run.env]
    assert main(command) == 0
    runs = {path: path.stat().st_mtime for path in (out / "cells").rglob("summary.json")}
    verdict = json.loads((out / "lbf" / "verdict.json").read_text())
    assert f"(on {first.run.env} alone: " in verdict["reason"]
    assert verdict["command"].endswith(f"--env {first.run.env}")
    assert main(command[:-2]) == 0
    assert all(path.stat().st_mtime == time for path, time in runs.items())


@pytest.mark.slow
def test_theory_at_smoke(out, capsys):
    assert main(["reproduce", "theory", "--scale", "smoke", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    verdict = json.loads((out / "theory" / "verdict.json").read_text())
    assert verdict["verdict"] == "not tested"
    assert [row["claim"] for row in verdict["rows"]] == [
        "Theorem 1", "Theorem 3", "Theorems 4 and 5", "Error of order K^(−1/2)", "Theorem 6",
    ]  # fmt: skip
    assert {row["verdict"] for row in verdict["rows"]} == {"holds"}
    assert all(row["found"] in " ".join(said.split()) for row in verdict["rows"])
    assert len(list((out / "theory").glob("*.png"))) == 5


def test_aggregators_at_smoke(out, capsys):
    command = ["reproduce", "aggregators", "--scale", "smoke", "--out", str(out)]
    assert main([*command, "--processes", "1"]) == 0
    said = capsys.readouterr().out
    assert "N = 2, |A| = 3: 1 of 1" in said
    verdict = json.loads((out / "aggregators" / "verdict.json").read_text())
    assert verdict["verdict"] == "not tested"
    found = [(row["mean"], row["entropic"], row["max"]) for row in verdict["rows"]]
    assert found == [("0 of 2", "2 of 2", "2 of 2")]


def test_a_dry_run_of_what_trains_nothing(capsys):
    assert main(["reproduce", "theory", "--dry-run"]) == 0
    assert "no runs; on two cores" in capsys.readouterr().out


def test_what_trains_nothing_is_for_no_cluster(capsys):
    assert main(["reproduce", "theory", "--executor", "ray"]) == 2
    assert "theory: is a calculation on this machine" in capsys.readouterr().err


# --- All of them --------------------------------------------------------------------------------


def calculation(status):
    """An experiment that finds this; "failed" ends in a user error."""

    def compute(scale, options):
        if status == "failed":
            raise UserError("no memory")
        return Findings(Verdict(status, "found it"), [{"method": "ippo", "return": "1"}], {})

    return Calculation("Fig. 0", f"A claim that {status}.", "A rule.", compute, "it takes no time")


def test_all_experiments_end_in_one_page_and_a_failure_stops_none(monkeypatch, tmp_path, capsys):
    parts = {name: calculation(name) for name in ("holds", "failed", "does not hold")}
    monkeypatch.setattr(catalogue, "EXPERIMENTS", parts)
    out = tmp_path / "out"
    assert main(["reproduce", "all", "--scale", "quick", "--out", str(out)]) == 1
    said, errors = capsys.readouterr()
    assert "failed: no memory" in errors
    assert said.splitlines()[-1] == f"{out / 'report.html'}: every claim with its verdict"
    page = (out / "report.html").read_text()
    assert "Of 2 claims of the paper, 1 holds, 1 does not hold." in page
    assert page.count("A claim that ") == 2
    assert "failed: no memory" in page


def test_the_runs_of_all_experiments_are_listed_once(capsys, monkeypatch):
    monkeypatch.setattr(Costs, "seconds", lambda self, run: 60.0)
    assert main(["reproduce", "all", "--scale", "smoke", "--dry-run"]) == 0
    said = capsys.readouterr().out
    cells = {c.folder for each in EXPERIMENTS.values() for c in each.cells("smoke")}
    assert f" {len(cells)} runs" in said
    assert "theory: on two cores it takes" in said
