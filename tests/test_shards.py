"""Several processes on one suite, and SLURM's array of jobs: the results of one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import submitit  # noqa: F401 (its log goes where standard output is when it is imported)

from fake_worker import BROKEN, CRASHING
from perla.cli import main
from perla.cli.suite import part
from perla.errors import UserError
from perla.plugins import install_command
from perla.runs.store import CLOCKS, Folder
from perla.suites import display, execute, local
from perla.suites.slurm import Slurm
from perla.suites.suite import load

ENV = "lbf:Foraging-5x5-2p-1f-v2"
FAKE = (str(Path(__file__).with_name("fake_worker.py")),)
GRID = {"env": ENV, "algo": ["ippo", "mappo", "perla-ippo"], "steps": 100, "seeds": 3,
        "num_evaluations": 5, "settings": {"num_envs": 2, "rollout_length": 5}}  # fmt: skip
MAIN = (
    "import sys; from perla.suites import local; from perla.cli import main; "
    f"local.PROGRAM = {FAKE!r}; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture(autouse=True)
def suite(tmp_path, monkeypatch):
    """A suite of four cells in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "PROGRAM", FAKE)
    return write()


def write(**changes):
    Path("s.json").write_text(json.dumps({"name": "s", "grids": [GRID | changes]}))
    return load(Path("s.json")).cells()


def records(out, cell):
    """The records of a cell, without clocks."""
    rows = Folder.open(Path(out) / cell.folder).records()
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the suite, carried out by one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out.parent)
        patch.setattr(local, "PROGRAM", FAKE)
        write()
        assert main(["suite", "s.json", "--quiet", "--out", str(out)]) == 0
    return out


def test_three_shards_give_the_folder_of_one_process(suite, whole, capsys):
    verdicts = []
    for shard in ("2/3", "3/3", "1/3"):
        assert not Path("parts/summary.json").exists()
        assert main(["suite", "s.json", "--quiet", "--out", "parts", "--shard", shard]) == 0
        verdicts.append(capsys.readouterr().out.splitlines()[-1])
    assert [line.split(" cells")[0] for line in verdicts[:2]] == ["2", "1"]
    assert "the last one to finish compares all" in verdicts[0]
    assert verdicts[2] == json.loads((whole / "summary.json").read_text())["verdict"]
    for cell in suite:
        assert records("parts", cell) == records(whole, cell)
    names = {path.relative_to(whole) for path in whole.rglob("*")}
    found = {path.relative_to("parts") for path in Path("parts").rglob("*")}
    events = {path for path in names ^ found if "tfevents" in path.name}
    assert names ^ found == events


@pytest.mark.slow
def test_processes_that_meet_share_the_cells(suite):
    """Two processes carry out the same suite at once: nothing fails, and one of them compares."""
    cells = write(algo=["ippo", "mappo"])
    command = [sys.executable, "-c", MAIN, "suite", "s.json", "--out", "both", "--processes", "1"]
    processes = [subprocess.Popen(command, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert not any(error for _, error in outputs)
    assert any("in 3 seeds" in output for output, _ in outputs)
    assert not execute.collect(cells, Path("both")).pending
    assert not list(Path("both").rglob("*.log"))


def test_a_cell_of_another_process_is_skipped_and_left_to_it(capsys):
    suite = write(algo=["ippo", "mappo"])
    folder = Path("out") / suite[0].folder
    folder.mkdir(parents=True)
    busy = Folder(folder)
    busy.lock()
    try:
        assert main(["suite", "s.json", "--out", "out", "--processes", "1"]) == 0
    finally:
        busy.unlock()
    out, error = capsys.readouterr()
    assert error == ""
    assert f"skipped   {suite[0].name}" in out
    assert "another process is working on this run" in out
    assert f"1 cells are left to other processes, such as {suite[0].name}" in out
    assert not Path("out/summary.json").exists()


def test_the_last_process_names_the_failures_of_the_others(capsys):
    cells = write(algo=["ippo", "mappo"], settings=GRID["settings"] | {"lr": [1e-3, BROKEN]})
    argv = ["suite", "s.json", "--quiet", "--out", "out"]
    assert main([*argv, "--shard", "2/2"]) == 1  # Both of its cells fail.
    assert "2 cells are left" in capsys.readouterr().out
    assert len(list(Path("out").rglob("*.failed"))) == 2
    assert main([*argv, "--shard", "1/2"]) == 1
    out, error = capsys.readouterr()
    assert f"{cells[1].name}: lr = 0.5: far too much" in error
    assert "in 3 seeds" in out


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3"])
def test_shards_are_parts_of_a_whole(suite, shard):
    with pytest.raises(UserError, match=f"--shard {shard}: expected a part of all"):
        part(suite, shard)


def test_shards_have_every_cell_once(suite):
    parts = [part(suite, f"{index}/3") for index in (1, 2, 3)]
    assert sorted(cell.name for each in parts for cell in each) == sorted(c.name for c in suite)
    assert part(suite, None) == suite


def test_a_pipe_has_a_line_for_each_evaluation(suite, monkeypatch, capsys):
    from rich.console import Console

    lines = display.Lines(Console(width=200))
    execute.carry_out(suite[:1], Path("out"), local.Local(1), display.Silent())
    folder = Path("out") / suite[0].folder
    lines.begin({folder: suite[0]}, [folder])
    lines.progress.running.append(folder)
    lines.report()
    lines.report()
    lines.close()
    out = capsys.readouterr().out
    assert out.count(f"running   {suite[0].name}  step 100/100  return ") == 1
    assert "±" in out
    assert "steps/s" in out


# --- SLURM --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_submitit_s_jobs_give_the_folder_of_one_process(suite, whole, cluster):
    pytest.importorskip("submitit")

    class Recorder(display.Silent):
        def __init__(self):
            self.kinds = []

        def consume(self, event):
            self.kinds.append(event.kind)

    heard = Recorder()
    outcome = execute.carry_out(suite, Path("jobs"), Slurm(cluster=cluster), heard)
    assert outcome.failures == {}
    assert sorted(heard.kinds) == ["finished"] * 3 + ["started"] * 3
    for cell in suite:
        assert records("jobs", cell) == records(whole, cell)
    assert not list(Path("jobs").rglob("*.job.json"))


def test_failures_and_busy_runs_of_jobs_are_told(suite):
    pytest.importorskip("submitit")
    cells = write(settings=GRID["settings"] | {"lr": [1e-3, CRASHING]})[:2]
    folder = Path("jobs") / cells[0].folder
    folder.mkdir(parents=True)
    busy = Folder(folder)
    busy.lock()
    outcome = execute.carry_out(cells, Path("jobs"), Slurm(cluster="debug"), display.Silent())
    busy.unlock()
    assert outcome.pending == [cells[0].name]
    assert "ZeroDivisionError: division by zero" in outcome.failures[cells[1].name]


def test_without_slurm_or_submitit_a_line_says_so(suite, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["suite", "s.json", "--executor", "slurm", "--quiet", "--out", "jobs"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("perla: no job was submitted to SLURM: ")
    assert error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["suite", "s.json", "--executor", "slurm", "--quiet", "--out", "jobs"]) == 2
    line = f"perla: submitit is not installed: {install_command('slurm')}\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--gpus", "0.5"), "gpus = 0.5: SLURM gives whole ones to a job"),
        (("--sbatch", "partition"), "--sbatch partition: expected NAME=VALUE"),
        (("--hours", "0"), "--hours 0: expected a number > 0"),
        (("--address", "x"), "--address belongs to --executor ray, and this is --executor slurm"),
    ],
)
def test_mistakes_in_the_flags_of_slurm_end_in_one_line(suite, capsys, flags, said):
    pytest.importorskip("submitit")
    assert main(["suite", "s.json", "--executor", "slurm", *flags]) == 2
    assert said in capsys.readouterr().err
