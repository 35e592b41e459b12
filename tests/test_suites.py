"""Suites: each cell is carried out once, and no failure stops the others."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

import fake_worker
from marks import slow
from perla import machine
from perla.analysis.load import load as load_run
from perla.errors import UserError
from perla.methods.recipes import make
from perla.runs import checkpoint
from perla.runs.store import CLOCKS, Folder
from perla.suites import display, execute, local, processes, suite, worker
from perla.suites.executors import Event, Task
from perla.suites.suite import Grid, Suite

ENV = "lbf:Foraging-5x5-2p-1f-v2"
TINY = {"num_envs": 2, "rollout_length": 5}
FAKE = (str(Path(__file__).with_name("fake_worker.py")),)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(local, "PROGRAM", FAKE)


def cells(*rates, algo="ippo", **changes):
    grid = {"env": ENV, "algo": algo, "settings": TINY | {"lr": rates}, "steps": 100, "seeds": 2}
    return Suite(name="test", grids=(Grid(**grid | {"num_evaluations": 5} | changes),)).cells()


def outcome(out, cell):
    """The records of a cell, without the clocks, which are the same for every executor."""
    records = Folder.open(out / cell.folder).records()
    return [{k: v for k, v in record.items() if k not in CLOCKS} for record in records]


class Recorder(display.Silent):
    def __init__(self):
        self.events: list[Event] = []

    def consume(self, event):
        self.events.append(event)

    @property
    def kinds(self):
        return [event.kind for event in self.events]


# --- Suites as data -----------------------------------------------------------------------------


def test_a_grid_is_every_combination():
    grid = Grid(
        env=("lbf:Foraging-5x5-2p-1f-v2", "lbf:Foraging-8x8-2p-2f-coop-v2"),
        algo=("ippo", "perla-ippo"),
        settings={"lr": (1e-3, 1e-4), "hidden_size": 16},
        steps=100,
        seeds=(3, 7),
    )
    found = list(grid.cells())
    assert len(found) == 8
    assert [cell.method for cell in found[:4]] == [
        "ippo lr=0.001", "ippo lr=0.0001", "perla-ippo lr=0.001", "perla-ippo lr=0.0001",
    ]  # fmt: skip
    assert found[3].run.config == make("perla-ippo", lr=1e-4, hidden_size=16)
    assert found[3].run.seeds == (3, 7)
    assert {cell.run.env for cell in found[:4]} == {"lbf:Foraging-5x5-2p-1f-v2"}
    assert len({cell.folder for cell in found}) == 8


def test_settings_may_stand_anywhere_in_a_configuration():
    (cell,) = cells(
        1e-3, algo="perla-ippo", settings=TINY | {"estimator": "sampled", "num_samples": 7}
    )
    assert cell.run.config.value.estimator.num_samples == 7
    assert cell.method == "perla-ippo"


def test_different_runs_have_different_folders():
    same, other = cells(1e-3)[0], cells(1e-3, steps=101)[0]
    assert same.folder == cells(1e-3)[0].folder
    assert same.folder != other.folder
    assert same.folder.parent == other.folder.parent


def test_a_suite_is_read_from_strict_json(tmp_path):
    path = tmp_path / "suite.json"
    grid = {"env": ENV, "algo": ["ippo", "mappo"], "steps": 10, "settings": {"lr": [1e-3, 1]}}
    path.write_text(json.dumps({"name": "rates", "grids": [grid]}))
    assert [cell.run.config.lr for cell in suite.load(path).cells()] == [1e-3, 1.0] * 2
    for change in ({"stepps": 3}, {"steps": -1}, {"algo": 3}, {"seeds": []}):
        path.write_text(json.dumps({"name": "rates", "grids": [grid | change]}))
        with pytest.raises(UserError, match=r"suite\.json: .*grids"):
            suite.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algo": "ipo"}, "did you mean 'ippo'"),
        ({"preset": "mavva"}, "did you mean 'mava'"),
        ({"settings": {"lrr": 1.0}}, "did you mean 'lr'"),
        ({"settings": {"lr": -1.0}}, "lr -1.0: expected a number > 0"),
        ({"settings": {"num_samples": 3}}, "num_samples belongs to perla-ippo"),
        ({"settings": {"returns": "gea"}}, "did you mean 'gae'"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=message):
        cells(1e-3, **change)


def test_cells_with_the_same_name_are_refused():
    grids = [Grid(env=ENV, algo="ippo", steps=10, settings={"lr": lr}) for lr in (1e-3, 1e-4)]
    with pytest.raises(UserError, match="two cells have the name 'ippo on lbf:"):
        Suite(name="test", grids=tuple(grids)).cells()
    labelled = tuple(grid.replace(label=f"rate {i}") for i, grid in enumerate(grids))
    assert [cell.method for cell in Suite(name="test", grids=labelled).cells()] == [
        "ippo rate 0", "ippo rate 1",
    ]  # fmt: skip


# --- Carrying out -------------------------------------------------------------------------------


def test_every_cell_is_carried_out_once(tmp_path):
    heard, todo = Recorder(), cells(1e-3, 1e-4, 1e-5)
    first = execute.carry_out(todo, tmp_path, local.Local(2), heard)
    assert [run.method for run in first.results] == [cell.method for cell in todo]
    assert not first.failures
    assert sorted(heard.kinds) == ["finished"] * 3 + ["started"] * 3
    assert not list(tmp_path.rglob("*.log")), "logs of finished cells are removed"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = Recorder()
    second = execute.carry_out(todo, tmp_path, local.Local(2), again)
    assert not again.events
    assert [run.path for run in second.results] == [run.path for run in first.results]
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    for cell in todo:
        worker_made = Folder.open(tmp_path / cell.folder).run()
        assert worker_made == cell.run


def test_a_failing_cell_is_named_and_the_rest_goes_on(tmp_path):
    todo = cells(fake_worker.BROKEN, fake_worker.CRASHING, 1e-3)
    heard = Recorder()
    found = execute.carry_out(todo, tmp_path, local.Local(1, retries=1), heard)
    assert found.failures == {
        todo[0].name: "lr = 0.5: far too much",
        todo[1].name: "ZeroDivisionError: division by zero",
    }
    assert [run.method for run in found.results] == [todo[2].method]
    assert "retried" not in heard.kinds, "a retry would fail as well"


def test_a_process_that_dies_is_retried_from_its_checkpoint(tmp_path):
    todo = cells(fake_worker.MORTAL)
    heard = Recorder()
    found = execute.carry_out(todo, tmp_path / "cut", local.Local(1), heard)
    assert not found.failures
    assert heard.kinds == ["started", "retried", "started", "finished"]
    assert "SIGKILL" in heard.events[1].text
    whole = tmp_path / "whole"
    mark = (whole / todo[0].folder).with_suffix(".died")
    mark.parent.mkdir(parents=True)
    mark.touch()
    execute.carry_out(todo, whole, local.Local(1), display.Silent())
    assert outcome(whole, todo[0]) == outcome(tmp_path / "cut", todo[0])


@pytest.mark.parametrize("after", [2, *slow(1, 3, 4)])
def test_a_suite_stopped_anywhere_goes_on(tmp_path, after):
    class Stops(Recorder):
        def consume(self, event):
            super().consume(event)
            if len(self.events) == after:
                raise KeyboardInterrupt

    todo = cells(fake_worker.SLOW, 1e-3, algo=("ippo", "mappo"))
    with pytest.raises(KeyboardInterrupt):
        execute.carry_out(todo, tmp_path / "cut", local.Local(2), Stops())
    execute.carry_out(todo, tmp_path / "cut", local.Local(2), display.Silent())
    execute.carry_out(todo, tmp_path / "whole", local.Local(2), display.Silent())
    for cell in todo:
        assert outcome(tmp_path / "cut", cell) == outcome(tmp_path / "whole", cell)


def test_a_corrupt_run_folder_is_named_and_the_rest_goes_on(tmp_path):
    todo = cells(1e-3, 1e-4)
    execute.carry_out(todo, tmp_path, local.Local(2), display.Silent())
    (tmp_path / todo[0].folder / "summary.json").write_text("{")
    found = execute.carry_out(todo, tmp_path, local.Local(2), display.Silent())
    assert "summary.json: damaged" in found.failures[todo[0].name]
    assert [run.method for run in found.results] == [todo[1].method]


def test_a_folder_of_another_run_is_left_alone(tmp_path):
    here, other = cells(1e-3)[0], cells(1e-4)[0]
    execute.carry_out([here], tmp_path, local.Local(1), display.Silent())
    with pytest.raises(UserError, match="holds another run"):
        worker.work(other.run, tmp_path / here.folder)
    assert load_run(tmp_path / here.folder).finished


def test_workers_end_with_their_parent(tmp_path):
    (cell,) = cells(fake_worker.SLOW, num_evaluations=50, steps=1000)
    process = local.start(Task(cell.run, tmp_path / "run"), tmp_path / "log", {}, FAKE)
    process.popen.stdin.close()
    assert process.popen.wait(timeout=60) in (-15, 143)
    if (tmp_path / "run/config.json").exists():
        assert not Folder.open(tmp_path / "run").finished


RARE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import fake_worker
fake_worker.main(checkpoint_seconds=1e9)
"""


def test_a_signal_saves_all_running_cells_and_they_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "PROGRAM", ("-c", RARE))
    some = cells(fake_worker.SLOW, fake_worker.SLOW + 0.001)
    rates = {cell.run.config.lr: cell for cell in some}
    watched = tmp_path / rates[fake_worker.SLOW].folder
    metrics = watched / "metrics.jsonl"

    def signal_once():
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 4:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    sender = threading.Thread(target=signal_once)
    sender.start()
    carried_out = execute.carry_out(some, tmp_path, local.Local(2), Recorder())
    sender.join()
    assert not carried_out.failures
    steps = [int(path.stem[5:]) for path in checkpoint.newest_first(watched / "checkpoints")]
    assert steps[0] == 100
    assert 0 < steps[1] < 100


def test_cores_memory_and_accelerators_limit_the_processes(monkeypatch):
    monkeypatch.setattr(machine, "accelerators", tuple)
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine, "memory", lambda: 64 * 2**30)
    assert processes.max_processes() == 8
    monkeypatch.setattr(machine, "memory", lambda: 5 * 2**30)
    assert processes.max_processes() == 2
    monkeypatch.setattr(machine, "accelerators", lambda: ("2", "3", "5", "7"))
    assert processes.max_processes() == 4
    assert processes.share(3, 4) == {"CUDA_VISIBLE_DEVICES": "7"}


def test_cores_may_be_fewer(monkeypatch):
    monkeypatch.setenv("PERLA_CORES", "1")
    assert machine.cores() == 1


# --- Watching -----------------------------------------------------------------------------------


def test_events_are_printed_in_lines(tmp_path, capsys):
    todo = cells(1e-3, fake_worker.BROKEN)
    execute.carry_out(todo, tmp_path, local.Local(1), display.create_display())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 cells"
    assert any(f"finished  {todo[0].name}" in line and "1 of 2 cells" in line for line in lines)
    assert any("failed" in line and "far too much" in line for line in lines)


def test_time_left_comes_from_the_speed_of_cells_like_it(tmp_path):
    todo = cells(1e-3, 1e-4)
    execute.carry_out(todo[:1], tmp_path, local.Local(1), display.Silent())
    by_folder = {tmp_path / cell.folder: cell for cell in todo}
    watch = display.SuiteProgress(by_folder, {tmp_path / todo[1].folder}, [], 2)
    _, speed = display.progress_of(tmp_path / todo[0].folder)
    assert watch.seconds_left() == pytest.approx(2 * 100 / speed)
    assert display.progress_of(tmp_path / "nowhere") == (0, None)
