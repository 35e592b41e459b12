"""`perla compare`, `perla suite` and `perla reproduce`: answers, pictures, and exit codes."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest

import fake_worker
from perla.cli import main
from perla.suites import local
from perla.suites.cost import Costs, Machine
from perla.suites.suite import Grid

ENV = "lbf:Foraging-5x5-2p-1f-v2"
TINY = ("--env", ENV, "--steps", "100", "--seeds", "3", "--num-evaluations", "5", "--quiet",
        "--num-envs", "2", "--rollout-length", "5")  # fmt: skip
SHORT = {"num_envs": 2, "rollout_length": 5}
FAKE = (str(Path(__file__).with_name("fake_worker.py")),)


@pytest.fixture(autouse=True)
def fake(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "PROGRAM", FAKE)
    monkeypatch.chdir(tmp_path)


def refused(capsys, *argv):
    assert main(argv) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("perla: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A folder with the comparison `both`, which is made once, and its output."""
    folder, output = tmp_path_factory.mktemp("comparison"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(local, "PROGRAM", FAKE)
        patch.chdir(folder)
        few = ("--eval-episodes", "4", "--absolute-episodes", "8")
        assert main(["compare", "ippo", "perla-ippo", *TINY, *few, "--out", "both"]) == 0
    return folder, output.getvalue()


@pytest.fixture
def compared(comparison):
    """The output of the comparison, of which the present folder has a copy."""
    folder, output = comparison
    shutil.copytree(folder / "both", "both")
    return output


def test_compare_ends_in_a_table_a_picture_and_a_sentence(compared):
    lines = compared.splitlines()
    assert "absolute" in compared
    assert "P(better than" in compared
    assert lines[-1].endswith(".")
    assert "ippo" in lines[-1]
    assert "in 3 seeds" in lines[-1]
    summary = json.loads(Path("both/summary.json").read_text())
    assert summary["verdict"] == lines[-1]
    assert [method["name"] for method in summary["methods"]] == ["ippo", "perla-ippo"]
    layout = json.loads(Path("both/marl_eval.json").read_text())
    assert set(layout["lbf"]["Foraging-5x5-2p-1f-v2"]) == {"ippo", "perla-ippo"}
    assert set(layout["lbf"]["Foraging-5x5-2p-1f-v2"]["ippo"]) == {"seed_0", "seed_1", "seed_2"}
    for config in Path("both").rglob("config.json"):
        run = json.loads(config.read_text())["run"]
        assert (run["eval_episodes"], run["absolute_episodes"]) == (4, 8)
    assert Path("both/comparison.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in Path("both/comparison.svg").read_bytes()


def test_finished_runs_are_compared_as_they_are(compared, capsys):
    assert main(["compare", "both/cells", "--out", "again", "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == compared.splitlines()[-1]
    assert main(["compare", *map(str, Path("both/cells").glob("*/*")), "--out", "third"]) == 0


@pytest.mark.parametrize(
    "flag", ["--steps 100", "--lr 3", "--no-agent-ids", "--env nowhere", "--cpus 1", "--dry-run"]
)
def test_finished_runs_take_no_flags_of_training(capsys, flag):
    Path("both").mkdir()
    error = refused(capsys, "compare", "both", *flag.split())
    name = flag.split()[0].replace("--no-", "--")
    assert f"{name}: is for training, and both is a folder of finished runs" in error
    assert "leave it out" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--steps", "110"), "steps = 1"),
        (("--env-option", "penalty=0.5"), "rules.penalty = "),
    ],
)
def test_unequal_runs_are_not_compared(compared, capsys, change, message):
    rest = [*TINY, *change]
    assert main(["compare", "mappo", "perla-mappo", *rest, "--out", "other"]) == 0
    capsys.readouterr()
    folders = [str(next(Path(p, "cells").rglob("config.json")).parent) for p in ("both", "other")]
    error = refused(capsys, "compare", *folders, "--out", "mixed")
    assert message in error
    assert all(folder in error for folder in folders)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--seeds", "4"), "in 3 to 4 seeds"),
        (("--num-evaluations", "4"), "all curves are interpolated at the 5"),
    ],
)
def test_other_seeds_and_evaluations_are_compared_and_said(compared, capsys, change, said):
    assert main(["compare", "mappo", "perla-mappo", *TINY, *change, "--out", "other"]) == 0
    capsys.readouterr()
    assert main(["compare", "both/cells", "other/cells", "--out", "mixed", "--quiet"]) == 0
    out, error = capsys.readouterr()
    assert said in out + error
    assert "probability that the row's method is better" in out


def test_a_table_has_all_its_numbers_in_any_width(compared, capsys, monkeypatch):
    wide = set(re.findall(r"\d+\.\d+", compared))
    for columns in ("60", "80", "1"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["compare", "both/cells", "--out", f"in{columns}", "--quiet"]) == 0
        lines = capsys.readouterr().out.splitlines()
        widest = max(len(line) for line in lines if line and line[0] in "│┃┏┡└")
        assert widest <= max(60, int(columns))
        assert set(re.findall(r"\d+\.\d+", "\n".join(lines))) == wide


def test_a_corrupt_run_among_the_inputs_is_named_and_the_rest_goes_on(compared, capsys):
    assert main(["compare", "mappo", "perla-mappo", *TINY, "--out", "more"]) == 0
    folder = next(Path("both/cells").glob("*/ippo-*"))
    (folder / "metrics.jsonl").write_text('{"seed": 0')
    capsys.readouterr()
    assert main(["compare", "both/cells", "more/cells", "--out", "rest", "--quiet"]) == 1
    out, error = capsys.readouterr()
    assert f"{folder}" in error
    assert "metrics.jsonl" in error
    assert "mappo" in out.splitlines()[-1]


def test_several_tasks_are_compared_each_and_together(capsys):
    grid = {"env": [ENV, ENV.replace("2p", "3p")], "algo": ["ippo", "mappo"], "steps": 100,
            "seeds": 3, "num_evaluations": 5, "settings": SHORT}  # fmt: skip
    Path("two.json").write_text(json.dumps({"name": "two", "grids": [grid]}))
    assert main(["suite", "two.json", "--quiet", "--out", "two"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for players in ("2p", "3p"):
        folder = Path(f"two/tasks/lbf-Foraging-5x5-{players}-1f-v2")
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["tasks"] == [ENV.replace("2p", players)]
        assert summary["verdict"] in lines
        assert (folder / "comparison.png").exists()
    together = json.loads(Path("two/summary.json").read_text())
    assert len(together["tasks"]) == 2
    assert lines[-1] == together["verdict"]


def test_a_suite_of_one_method_is_carried_out_without_a_comparison(capsys):
    grid = {"env": ENV, "algo": "ippo", "steps": 100, "seeds": 1,
            "settings": SHORT}  # fmt: skip
    Path("one.json").write_text(json.dumps({"name": "one", "grids": [grid]}))
    assert main(["suite", "one.json", "--quiet"]) == 0
    assert "no two methods" in capsys.readouterr().out
    assert len(list(Path("runs/one/cells").rglob("summary.json"))) == 1


def test_a_failing_cell_is_named_and_the_exit_code_tells(capsys):
    grid = {"env": ENV, "algo": ["ippo", "mappo"], "steps": 100, "seeds": 3, "num_evaluations": 5,
            "settings": SHORT | {"lr": [1e-3, fake_worker.BROKEN]}}  # fmt: skip
    Path("rates.json").write_text(json.dumps({"name": "rates", "grids": [grid]}))
    assert main(["suite", "rates.json", "--quiet"]) == 1
    out, error = capsys.readouterr()
    assert "ippo lr=0.5 on lbf:Foraging-5x5-2p-1f-v2: lr = 0.5: far too much" in error
    assert error.count("perla: ") == 2
    assert "mappo lr=0.001" in out
    assert Path("runs/rates/summary.json").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("compare", "ipo", "mappo"), "did you mean 'ippo'"),
        (("compare", "ippo"), "takes two methods"),
        (("compare", "ippo", "ippo"), "takes two methods"),
        (("compare", "ippo", "mappo", "--lr", "-1"), "--lr -1: expected a number > 0"),
        (("compare", "ippo", "mappo", "--steps", "0"), "--steps 0: expected"),
        (("compare", "ippo", "mappo", "--executor", "rey"), "did you mean 'ray'"),
        (("compare", "ippo", "mappo", "--processes", "0"), "--processes 0: expected"),
        (("compare", "ippo", "mappo", "--env", "lbf:Foraging-5x5"), "'Foraging-5x5': the number"),
        (("compare", "nowhere/run", "."), "nowhere/run: no such file or folder"),
        (("compare", "."), "no run"),
        (
            ("compare", "ippo", "mappo", "--gpus", "1"),
            "--gpus belongs to --executor ray or slurm, and this",
        ),
        (
            ("compare", "ippo", "mappo", "--executor", "ray", "--processes", "2", "--dry-run"),
            "--processes belongs to --executor local or slurm, and this is --executor ray",
        ),
        (
            ("compare", "ippo", "mappo", "--executor", "ray", "--cpus", "nonsense", "--dry-run"),
            "--cpus nonsense: expected a whole number",
        ),
        (("suite", "nothing.json"), "nothing.json: no such file"),
        (("suite", "nothing.json", "--cpus", "1"), "--cpus belongs to --executor ray or slurm"),
        (("reproduce", "matrix", "--address", "x", "--dry-run"), "--address belongs to --executor"),
        (("reproduce", "lbff"), "did you mean 'lbf'"),
        (("reproduce", "lbf", "--scale", "quik"), "did you mean 'quick'"),
        (("reproduce",), "required"),
    ],
)
def test_mistakes_end_in_one_line(capsys, argv, message):
    assert message in refused(capsys, *argv)


def test_a_dry_run_lists_the_cells_and_leaves_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(Machine, "measure", lambda: Machine(1e11, 1e9))
    assert main(["compare", "ippo", "perla-ippo", *TINY, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "2 runs" in out
    assert "perla-ippo" in out
    assert re.match(r"about \d+:\d\d on this machine", out.splitlines()[-1])
    assert not list(tmp_path.iterdir())


def test_costs_grow_with_what_they_should():
    costs = Costs(Machine(1e11, 1e9))

    def seconds(**changes):
        grid = {"env": ENV, "algo": "perla-ippo", "steps": 10**6, "seeds": 1,
                "eval_episodes": 32, "absolute_episodes": 320}  # fmt: skip
        (cell,) = Grid(**grid | changes).cells()
        return costs.seconds(cell.run)

    one, start = seconds(), seconds(steps=1)
    assert seconds(steps=2 * 10**6) - start == pytest.approx(2 * (one - start), rel=0.1)
    assert seconds(seeds=3) - start > 2.9 * (one - start)
    assert seconds(settings={"estimator": "sampled", "num_samples": 100}) > one
    assert seconds(settings={"lr": 1e-4}) == one
    assert seconds(settings={"hidden_size": 256}) > 1.5 * one
    assert len(costs.traced) == 3
