"""A run that was interrupted at any moment ends as if it had not been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import fake_loop
from fake_loop import FakeTrainer
from marks import slow
from perla.analysis import run_figure
from perla.errors import UserError
from perla.methods.recipes import make
from perla.runs import checkpoint, execute, pictures, resume_point
from perla.runs.interrupt import Interrupted
from perla.runs.spec import Run
from perla.runs.store import CLOCKS, Folder


def outcome(out: Path):
    """All numbers of a run but the times it took: metrics, final arrays, summary, marl-eval."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    newest = checkpoint.newest_first(out / "checkpoints")[0]
    arrays = safetensors.numpy.load_file(newest)
    return (
        [{k: v for k, v in record.items() if k not in CLOCKS} for record in records],
        {k: v for k, v in summary.items() if not k.endswith(("seconds", "second"))},
        newest.name,
        {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in arrays.items()},
    )


# --- In one process, with a loop that does not learn --------------------------------------------


@pytest.fixture(scope="module")
def run():
    config = make("ippo", num_envs=2, rollout_length=5)
    env = "lbf:Foraging-5x5-2p-1f-v2"
    return Run(env=env, algo="ippo", config=config, steps=100, seeds=(0, 3), num_evaluations=5)


@pytest.fixture
def fake(monkeypatch):
    """A loop that does not learn, and curves that are not drawn."""
    fake_loop.install(monkeypatch)
    monkeypatch.setattr(run_figure, "curves", lambda folder: b"curves")


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The outcome of the uninterrupted run. It does not depend on how often checkpoints are saved:
    `test_checkpoints_change_nothing`."""
    with pytest.MonkeyPatch.context() as patch:
        fake_loop.install(patch)
        out = tmp_path_factory.mktemp("whole")
        execute.train(run, out, checkpoint_seconds=1e9)
    return outcome(out)


class Killed(BaseException):
    """What nobody catches."""


def kill_at(monkeypatch, target, name, call):
    """Die when `target.name` is called for the `call`-th time, before it does anything."""
    original, calls = getattr(target, name), 0

    def dying(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, dying)
    return original


pytestmark = pytest.mark.xdist_group("resume")

PLACES = [
    (FakeTrainer, "init", range(1, 2)),
    (FakeTrainer, "train", range(1, 12)),
    (FakeTrainer, "evaluate", range(1, 7)),
    (FakeTrainer, "absolute", range(1, 2)),
    (Folder, "append", range(1, 7)),
    (resume_point, "save", range(1, 12)),
    (checkpoint, "prune", range(1, 12)),
    (Folder, "write_marl_eval", range(1, 2)),
    (pictures, "draw_curves", range(1, 2)),
    (pictures, "draw_replay", range(1, 2)),
    (Folder, "write_summary", range(1, 2)),
]


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["checkpoint-always", "checkpoint-rarely"])
@pytest.mark.parametrize(
    ("target", "name", "call"),
    [(target, name, call) for target, name, calls in PLACES for call in calls],
)
def test_dying_before_any_act_changes_nothing(
    run, whole, tmp_path, monkeypatch, fake, target, name, call, seconds
):
    with monkeypatch.context() as patch:
        kill_at(patch, target, name, call)
        try:
            execute.train(run, tmp_path / "cut", checkpoint_seconds=seconds)
        except Killed:
            pass
        else:
            assert seconds
            assert name in ("train", "save", "prune")
    execute.resume(tmp_path / "cut", checkpoint_seconds=seconds)
    assert outcome(tmp_path / "cut") == whole
    assert not pictures.missing(tmp_path / "cut")


def test_checkpoints_change_nothing(run, whole, tmp_path, fake):
    execute.train(run, tmp_path / "often", checkpoint_seconds=0.0)
    assert outcome(tmp_path / "often") == whole


def interrupted(run, out, monkeypatch, call=4):
    with monkeypatch.context() as patch:
        kill_at(patch, FakeTrainer, "evaluate", call)
        with pytest.raises(Killed):
            execute.train(run, out, checkpoint_seconds=0.0)


class Heard(execute.Silent):
    """Remembers what was said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_a_half_written_line_is_dropped(run, whole, tmp_path, monkeypatch, fake):
    interrupted(run, tmp_path / "cut", monkeypatch)
    with open(tmp_path / "cut/metrics.jsonl", "ab") as file:
        file.write(b'{"seed": 0, "step": 60, "upd')
    (tmp_path / "cut/.summary.json.123.tmp").write_text("half")
    execute.resume(tmp_path / "cut")
    assert outcome(tmp_path / "cut") == whole
    assert not list((tmp_path / "cut").rglob(".*"))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, whole, tmp_path, monkeypatch, fake):
    interrupted(run, tmp_path / "cut", monkeypatch)
    newest, older = checkpoint.newest_first(tmp_path / "cut/checkpoints")
    newest.write_bytes(newest.read_bytes()[:-5])
    heard = Heard()
    execute.resume(tmp_path / "cut", display=heard)
    (line,) = [line for line in heard.lines if newest.name in line]
    assert "truncated" in line
    assert older.name in line
    assert outcome(tmp_path / "cut") == whole


def test_without_a_readable_checkpoint_nothing_is_touched(run, tmp_path, monkeypatch, fake):
    interrupted(run, tmp_path / "cut", monkeypatch)
    for path in checkpoint.newest_first(tmp_path / "cut/checkpoints"):
        path.write_bytes(b"something else")
    before = {p: p.read_bytes() for p in (tmp_path / "cut").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="not a checkpoint"):
        execute.resume(tmp_path / "cut")
    assert {p: p.read_bytes() for p in (tmp_path / "cut").rglob("*") if p.is_file()} == before


def test_a_checkpoint_of_another_run_is_refused(run, tmp_path, monkeypatch, fake):
    interrupted(run, tmp_path / "one", monkeypatch)
    other = run.replace(config=run.config.replace(lr=0.5))
    interrupted(other, tmp_path / "two", monkeypatch)
    for path in checkpoint.newest_first(tmp_path / "two/checkpoints"):
        (tmp_path / "one/checkpoints" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="another configuration"):
        execute.resume(tmp_path / "one")


def test_a_finished_run_is_left_as_it_is(run, tmp_path, fake):
    execute.train(run, tmp_path / "a")
    before = {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    heard = Heard()
    result = execute.resume(tmp_path / "a", display=heard)
    assert "finished" in heard.lines[0]
    assert result.actor(3) == ("best", 1)
    assert {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()} == before


def test_wall_time_goes_on_where_it_was(run, tmp_path, monkeypatch, fake):
    interrupted(run, tmp_path / "a", monkeypatch)
    times = [r["wall_seconds"] for r in execute.resume(tmp_path / "a").records]
    assert times == sorted(times)
    assert times[0] > 0


def test_ctrl_c_stops_after_the_interval_and_keeps_it(run, whole, tmp_path, monkeypatch, fake):
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background
    evaluate, calls = FakeTrainer.evaluate, 0

    def evaluate_and_signal(self, states):
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)  # The thread that listens is told at once; give it its turn.
        return evaluate(self, states)

    heard = Heard()
    with monkeypatch.context() as patch:
        patch.setattr(FakeTrainer, "evaluate", evaluate_and_signal)
        with pytest.raises(Interrupted, match="perla resume") as caught:
            execute.train(run, tmp_path / "cut", display=heard, checkpoint_seconds=1e9)
    assert caught.value.exit_code == 130
    assert any("stopping" in line for line in heard.lines)
    assert signal.getsignal(signal.SIGINT) is before
    (newest, *_) = checkpoint.newest_first(tmp_path / "cut/checkpoints")
    assert newest == checkpoint.path_of(tmp_path / "cut/checkpoints", 40)
    execute.resume(tmp_path / "cut")
    assert outcome(tmp_path / "cut") == whole


# --- For real: processes killed with SIGKILL ----------------------------------------------------

SETTINGS = [
    *("perla-ippo", "--env", "lbf:Foraging-5x5-2p-1f-v2", "--steps", "1600", "--seeds", "2"),
    *(
        "--num-envs",
        "2",
        "--rollout-length",
        "10",
        "--update-epochs",
        "2",
        "--hidden-size",
        "8",
        "--actor-network",
        "gru",
    ),
    *("--target", "hard", "--target-update-interval", "7", "--normalize-rewards", "--anneal-lr"),
    *("--num-evaluations", "40", "--eval-episodes", "4", "--absolute-episodes", "8"),
]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The folder with the uninterrupted run, and how to start and to finish processes like it."""
    folder = tmp_path_factory.mktemp("real")

    def start(*arguments):
        command = [sys.executable, "-m", "perla", *arguments, "--quiet"]
        return subprocess.Popen([*command, "--checkpoint-seconds", "0"], stderr=subprocess.PIPE)

    def finish(process):
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error.decode()
        assert error == b""

    finish(start("train", *SETTINGS, "--out", str(folder / "whole")))
    return folder, start, finish


def written(out):
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_and_resume(real, lines, delay, name):
    """Kill a run `delay` seconds after it has written `lines` lines, resume it, compare."""
    folder, start, finish = real
    out = folder / name
    process = start("train", *SETTINGS, "--out", str(out))
    while not (out / "config.json").exists() or written(out) < lines:
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.communicate()
    reached = written(out)
    finish(start("resume", str(out)))
    assert outcome(out) == outcome(folder / "whole")
    return reached


@pytest.mark.parametrize("lines", [30, *slow(1, 60)])
def test_killed_runs_end_like_the_uninterrupted_one(real, lines):
    assert lines <= kill_and_resume(real, lines, 0.005, f"short-{lines}") < 82


@pytest.mark.slow
def test_twenty_random_kills(real):
    """Before the first line, between any two, and after the last, where pictures are drawn."""
    chance = random.Random(0)
    moments = (
        [(0, 8.0)] * 3 + [(chance.randrange(1, 82), 0.05) for _ in range(14)] + [(82, 4.0)] * 3
    )
    reached = [
        kill_and_resume(real, lines, chance.uniform(0.0, most), f"kill-{number}")
        for number, (lines, most) in enumerate(moments)
    ]
    assert len(set(reached)) > 5, "the moments did not differ"


@pytest.mark.slow
def test_a_run_repeats_itself_to_the_bit(real):
    folder, start, finish = real
    finish(start("train", *SETTINGS, "--out", str(folder / "again")))
    assert outcome(folder / "again") == outcome(folder / "whole")
    np.testing.assert_equal(outcome(folder / "again")[3], outcome(folder / "whole")[3])
