"""Files of a run that were deleted, cut, doubled, edited or damaged are named, and what is whole is
used."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import perla
from fake_loop import FakeTrainer
from perla.analysis.load import is_finished, load
from perla.cli import main
from perla.config import to_plain
from perla.errors import UserError
from perla.runs import checkpoint, execute, pictures
from perla.runs.interrupt import Interrupted
from perla.runs.store import CLOCKS
from untrusted import RUN, fixture_folder, fixture_here, fixture_whole  # noqa: F401

pytestmark = pytest.mark.usefixtures("here")

LONG = RUN.replace(steps=100, num_evaluations=5, seeds=(0, 3))


class Heard(execute.Silent):
    """Remembers what was said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def stop_at(monkeypatch, call, name="evaluate", signum=None):
    """Before the `call`-th call of a method of the trainer: raise, or send a signal."""
    original, calls = getattr(FakeTrainer, name), 0

    def stopping(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == call and signum is None:
            raise KeyboardInterrupt
        if calls == call:
            os.kill(os.getpid(), signum)
            time.sleep(0.3)  # The thread that listens is told at once; give it its turn.
        return original(self, *arguments)

    monkeypatch.setattr(FakeTrainer, name, stopping)


@pytest.fixture
def cut(here, monkeypatch):
    """The folder of a run that was killed after evaluation 2: with checkpoints after step 40, and
    after step 50 within the next interval."""
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            execute.train(LONG, here / "cut", checkpoint_seconds=0.0)
    names = [path.stem for path in checkpoint.newest_first(here / "cut/checkpoints")]
    assert names == ["step_000000000050", "step_000000000040"]
    return here / "cut"


def metrics(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in each.items() if k not in CLOCKS} for each in records]


def resumed(folder: Path) -> list[str]:
    """Resume, compare with an uninterrupted run, and return what was said."""
    heard = Heard()
    execute.resume(folder, display=heard, pictures=False)
    shutil.rmtree("whole", ignore_errors=True)
    execute.train(LONG, Path("whole"), pictures=False)
    assert metrics(folder) == metrics(Path("whole"))
    return heard.lines


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- metrics.jsonl ------------------------------------------------------------------------------


def rewrite(folder: Path, change) -> None:
    path = folder / "metrics.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: [], "is empty, and had 6 lines at step_000000000050"),
        (lambda lines: lines[:3], "has 3 lines, and had 6 at step_000000000050"),
        (lambda lines: lines[1:], "has 5 lines, and had 6"),
        (lambda lines: [lines[0].replace(b"0", b"1", 1), *lines[1:]], "are not those of"),
        (lambda lines: [lines[0], *lines], "are not those of"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "are not those of"),
        (lambda lines: [b"\xff" + lines[0], *lines[1:]], "are not those of"),
    ],
)  # fmt: skip
def test_metrics_that_were_changed_stop_a_resume(cut, change, told):
    rewrite(cut, change)
    before = contents(cut)
    with pytest.raises(UserError, match=r"metrics\.jsonl") as error:
        execute.resume(cut)
    assert told in str(error.value)
    assert f"remove {cut}/checkpoints and `perla resume {cut}` starts it again" in str(error.value)
    assert contents(cut) == before


def test_metrics_that_are_missing_stop_a_resume_and_the_remedy_works(cut):
    (cut / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl: is missing, and had 6 lines"):
        execute.resume(cut)
    shutil.rmtree(cut / "checkpoints")
    resumed(cut)


def test_metrics_cut_by_an_interval_are_made_again_from_the_checkpoint_before(here):
    execute.train(LONG, Path("a"), checkpoint_seconds=0.0, keep_checkpoints=None, pictures=False)
    for name in ("summary.json", "marl_eval.json"):
        Path("a", name).unlink()
    rewrite(Path("a"), lambda lines: lines[:7])
    lines = resumed(Path("a"))
    assert "has 7 lines, and had 12 at step_000000000100" in lines[0]
    assert "; resuming from step_000000000050" in lines[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines + lines,
        lambda lines: [*lines, b"{]\n"],
        lambda lines: [*lines, lines[0]],
    ],
)
def test_lines_that_follow_no_evaluation_are_named_and_cut_off(cut, change):
    rewrite(cut, change)
    (line,) = (line for line in resumed(cut) if "metrics.jsonl" in line)
    assert "too many after line 6; resuming from step_000000000050" in line


def test_the_metrics_of_a_finished_run_are_held_against_its_last_checkpoint(folder):
    for change in (lambda lines: lines[:1], lambda lines: lines + lines, lambda lines: lines[::-1]):
        kept = (folder / "metrics.jsonl").read_bytes()
        rewrite(folder, change)
        with pytest.raises(UserError, match=r"metrics\.jsonl"):
            execute.resume(folder)
        (folder / "metrics.jsonl").write_bytes(kept)
    assert execute.resume(folder).records


# --- Checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
def test_the_checkpoint_before_is_used_and_that_is_said(cut, capsys, damage):
    newest, older = checkpoint.newest_first(cut / "checkpoints")
    data = newest.read_bytes()
    if damage == "removed":
        newest.unlink()
    else:
        newest.write_bytes(data[:-9] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    for command in ("evaluate", "render"):
        assert main([command, str(cut)]) == 0
        said = capsys.readouterr().err
        if damage != "removed":  # Within an interval, nothing tells that there was another.
            assert f"{newest}: " in said
            assert f"; using {older.name}" in said
    lines = resumed(cut)
    assert damage == "removed" or any(f"resuming from {older.name}" in line for line in lines)
    assert newest not in checkpoint.newest_first(cut / "checkpoints")


def test_evaluations_after_the_checkpoint_are_named(here, capsys):
    execute.train(LONG, Path("all"), checkpoint_seconds=0.0, keep_checkpoints=None, pictures=False)
    for path in checkpoint.newest_first(Path("all/checkpoints")):
        if int(path.stem[5:]) > 40:
            path.unlink()
    told = "metrics.jsonl: has evaluations up to number 5, later than number 2"
    assert main(["evaluate", "all"]) == 0
    assert f"{told}; using step_000000000040" in capsys.readouterr().err
    Path("all/summary.json").unlink()
    assert any(f"{told}; resuming from step_000000000040" in line for line in resumed(Path("all")))


def test_if_all_are_damaged_the_line_says_the_way_forward(cut, capsys):
    for path in checkpoint.newest_first(cut / "checkpoints"):
        path.write_bytes(path.read_bytes()[:100])
    for command in ("resume", "evaluate", "render"):
        assert main([command, str(cut)]) == 2
        said = capsys.readouterr().err
        assert (
            "step_000000000050.safetensors: truncated checkpoint; no checkpoint of the run" in said
        )
        assert f"remove {cut}/checkpoints and `perla resume {cut}` starts it again" in said
    shutil.rmtree(cut / "checkpoints")
    resumed(cut)


@pytest.mark.parametrize(("keep", "left"), [(1, 1), (3, 3), (None, 11)])
def test_as_many_are_kept_as_were_asked_for(here, keep, left):
    execute.train(LONG, here / "a", checkpoint_seconds=0.0, keep_checkpoints=keep, pictures=False)
    assert len(checkpoint.newest_first(here / "a/checkpoints")) == left


@pytest.mark.parametrize("word", ["0", "-1", "none", "some", "1.5"])
def test_a_number_of_checkpoints_is_one(folder, capsys, word):
    assert main(["resume", str(folder), "--keep-checkpoints", word]) == 2
    assert "--keep-checkpoints" in capsys.readouterr().err
    assert main(["resume", str(folder), "--keep-checkpoints", "all"]) == 0


# --- summary.json, pictures, versions -----------------------------------------------------------


def test_an_empty_summary_is_no_finished_run(folder):
    expected = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text("")
    assert not is_finished(folder)
    assert not load(folder).finished
    result = execute.resume(folder)
    assert is_finished(folder)
    assert result.summary["seeds"] == expected["seeds"]


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"seeds": []}', '{"seeds": [{}]}', '{"seeds": null}',
             '{"seeds": [], "dropped": [{}]}', "\xff", "[" * 100_000],
)  # fmt: skip
def test_a_damaged_summary_is_named_with_the_remedy(folder, text):
    (folder / "summary.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"summary\.json: damaged") as error:
        execute.resume(folder)
    assert "remove the file, and `perla resume" in str(error.value)
    (folder / "summary.json").unlink()
    assert execute.resume(folder).summary["seeds"]


@pytest.mark.parametrize("gone", [["curves.png"], ["replay.gif"], ["curves.png", "replay.gif"]])
def test_pictures_that_are_missing_are_drawn(folder, gone):
    for name in gone:
        (folder / name).unlink()
    execute.resume(folder, pictures=False)
    assert pictures.missing(folder)
    heard = Heard()
    execute.resume(folder, display=heard)
    assert not pictures.missing(folder)
    assert "drawing the missing pictures" in heard.lines[0]


def test_without_a_checkpoint_a_line_says_why_there_is_no_replay(folder):
    shutil.rmtree(folder / "checkpoints")
    (folder / "replay.gif").unlink()
    heard = Heard()
    execute.resume(folder, display=heard)
    assert heard.lines[-1].startswith("no replay.gif: ")


def test_curves_can_be_drawn_alone(folder, capsys):
    (folder / "curves.png").unlink()
    shutil.rmtree(folder / "checkpoints")
    assert main(["render", str(folder), "--curves"]) == 0
    assert main(["render", str(folder), "--curves", "--out", "other.png"]) == 0
    assert Path("other.png").read_bytes() == (folder / "curves.png").read_bytes()
    assert main(["render", str(folder), "--curves", "--out", "other.gif"]) == 2
    assert main(["render", str(folder), "--curves", "--seed", "0"]) == 2
    assert "--seed: is for an episode" in capsys.readouterr().err


def test_other_versions_are_named(folder, capsys):
    facts = json.loads((folder / "config.json").read_text())
    now = facts["versions"]["jax"]
    facts["versions"] |= {"jax": "0.0.1", "perla": "0.0.2", "other": "1"}
    (folder / "config.json").write_text(json.dumps(facts))
    heard = Heard()
    execute.resume(folder, display=heard)
    assert f"{folder}: began with perla 0.0.2, jax 0.0.1, and this is perla" in heard.lines[0]
    assert f"jax {now}; numbers may differ" in heard.lines[0]
    for command in ("evaluate", "render"):
        assert main([command, str(folder)]) == 0
        assert "began with perla 0.0.2, jax 0.0.1" in capsys.readouterr().err


# --- Signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_stops_within_an_interval(here, monkeypatch, signum):
    previous = signal.signal(signum, signal.SIG_DFL)  # Ignored where the tests run in background.
    try:
        with monkeypatch.context() as patch:
            stop_at(patch, 2, "train", signum)
            with pytest.raises(Interrupted, match="perla resume") as caught:
                execute.train(LONG, here / "a b", checkpoint_seconds=1e9)
    finally:
        signal.signal(signum, previous)
    assert caught.value.exit_code == 128 + signum
    assert f"`perla resume '{here}/a b'` continues" in str(caught.value)
    newest, first = checkpoint.newest_first(here / "a b/checkpoints")
    assert (newest.stem[-3:], first.stem[-3:]) == ("010", "000")
    resumed(here / "a b")


def test_a_signal_saves_and_the_run_goes_on(here, monkeypatch):
    heard = Heard()
    options = {"checkpoint_seconds": 1e9, "keep_checkpoints": None, "display": heard}
    with monkeypatch.context() as patch:
        stop_at(patch, 2, "train", signal.SIGUSR1)
        execute.train(LONG, here / "a", **options)
    steps = [int(path.stem[5:]) for path in checkpoint.newest_first(here / "a/checkpoints")]
    assert steps == [100, 10, 0]
    assert "saved the checkpoint of step 10" in heard.lines


def test_nohup_is_respected(here, monkeypatch):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            stop_at(patch, 2, "train", signal.SIGHUP)
            execute.train(LONG, here / "a", checkpoint_seconds=1e9)
        assert is_finished(here / "a")
    finally:
        signal.signal(signal.SIGHUP, previous)


# --- Results ------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", [None, Path("a")])
def test_a_result_can_be_pickled(here, out):
    result = execute.train(LONG, out, pictures=False)
    again = pickle.loads(pickle.dumps(result))
    assert again.run == result.run
    assert again.records == result.records
    assert again.summary == result.summary
    assert again.actor(3) == result.actor(3) == ("best", 1)
    for leaf, other in zip(again.arrays, result.arrays, strict=True):
        assert leaf.tobytes() == other.tobytes()


@pytest.mark.parametrize("seeds", [np.int64(2), np.arange(2), [np.int32(0), 1], (0, 1), 2])
def test_numpys_scalars_and_arrays_are_numbers(here, seeds):
    result = perla.train(
        "matrix:climbing",
        "ippo",
        steps=np.int64(20),
        seeds=seeds,
        num_evaluations=np.uint8(2),
        eval_episodes=np.array(2),
        lr=np.float32(0.5),
        num_envs=np.int16(2),
        rollout_length=np.array(5),
        normalize_rewards=np.bool_(True),
        parameter_groups=np.array([0, 1]),
    )
    plain = perla.train(
        "matrix:climbing", "ippo", steps=20, seeds=(0, 1), num_evaluations=2, eval_episodes=2,
        lr=0.5, num_envs=2, rollout_length=5, normalize_rewards=True, parameter_groups=(0, 1),
    )  # fmt: skip
    assert result.spec == plain.spec
    assert result.spec.identity == plain.spec.identity


def test_numpys_numbers_are_options_of_environments(here):
    options = {"penalty": np.float64(-5.0)}
    run = perla.train("ours:make", "ippo", steps=5, env_options={"game": np.str_("climbing")}).spec
    assert run.env_options == {"game": "climbing"}
    assert to_plain(options) == {"penalty": -5.0}
