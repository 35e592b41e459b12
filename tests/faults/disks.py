"""Full disks, read-only folders, two processes on one run, damaged checkpoints: `make
test-faults`."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from faults.harness import (
    EAGER,
    PATIENCE,
    Reference,
    environment,
    finish,
    interrupt,
    metrics,
    metrics_path,
    start,
    train_or_resume,
)
from perla.runs import checkpoint
from test_resume import outcome

DROP_CAPABILITY, OVERRIDE_PERMISSIONS = 24, 1
"""Linux's numbers: an operation of `prctl`, and the capability by which root writes anywhere."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    return Reference("jax", tmp_path_factory.mktemp("reference"))


def refused(process: subprocess.Popen) -> str:
    """The only line of the error in which a process ends."""
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, (process.args, error)
    (line,) = error.splitlines()
    assert line.startswith("perla: ")
    return line


def resumed(whole: Reference, out: Path) -> None:
    """Continue a run, and compare with the uninterrupted one."""
    finish(start(whole.cache, *train_or_resume(whole.kind, out), "--quiet"))
    assert outcome(out) == whole.outcome
    assert {path.name for path in out.iterdir() if not path.name.startswith("events")} == {
        path.name for path in whole.out.iterdir() if not path.name.startswith("events")
    }


# --- Full disks ---------------------------------------------------------------------------------


def limited(whole: Reference, out: Path, limit: int) -> str | None:
    """Make a run whose files may not grow beyond `limit` bytes, and resume it without a limit: the
    line in which the first ends, if it does not succeed."""

    def lower():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = train_or_resume(whole.kind, out)
    process = start(whole.cache, *command, "--quiet", preexec_fn=lower)
    if process.wait(timeout=PATIENCE) == 0:
        return None
    line = refused(process)
    assert "file too large" in line
    assert not list(out.rglob(".*")) if out.exists() else True
    resumed(whole, out)
    return line


def test_files_that_may_not_grow(whole, tmp_path):
    """The system refuses every write beyond a size; each file of a run is refused in turn, but
    `metrics.jsonl`, which is smaller than the checkpoint before it."""
    sizes = sorted({path.stat().st_size for path in whole.out.rglob("*") if path.is_file()})
    told = set()
    for limit in (0, *(size - 1 for size in sizes)):
        line = limited(whole, tmp_path / str(limit), limit)
        if line is None:
            assert limit == sizes[-1] - 1
        else:
            told.add(line.split(": ")[1].rpartition("/")[2].split("_")[0])
    assert {"config.json", "step", "curves.png"} <= told


def test_metrics_that_may_not_grow(tmp_path):
    """A line of many is refused, or cut."""
    whole = Reference("records", tmp_path / "reference")
    size = metrics_path(whole.out).stat().st_size
    checkpoints = (whole.out / "checkpoints").iterdir()
    largest = max(path.stat().st_size for path in checkpoints)
    for limit in (largest + 1, int(0.97 * size)):
        line = limited(whole, tmp_path / str(limit), limit)
        assert line is not None
        assert "metrics.jsonl" in line


def small_disk(size: str, command: str) -> list[str]:
    """A shell command on a disk of `size` at `$DISK`, which vanishes with it."""
    mount = f'mount -t tmpfs -o size={size} tmpfs "$DISK" && {command}'
    return ["unshare", "--mount", "--map-root-user", "sh", "-c", mount]


def test_disks_of_every_size(whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    variables = environment(whole.cache, DISK=str(disk))
    allowed = subprocess.run(small_disk("1m", "true"), env=variables, capture_output=True)
    if allowed.returncode:
        pytest.skip("this system lets nobody mount a small disk")
    program = start(whole.cache, "--version").args[:2]
    failures = 0
    for pages in (*range(1, 16), *range(16, 200, 12)):
        out = tmp_path / str(pages)
        argv = [*program, *train_or_resume("jax", disk / "run"), "--quiet", *EAGER]
        words = " ".join(f"'{word}'" for word in argv)
        copied = f'{words}; status=$?; cp -a "$DISK/run" "{out}"; exit $status'
        ran = subprocess.run(
            small_disk(f"{4 * pages}k", copied), env=variables, capture_output=True, text=True
        )
        if ran.returncode == 0:
            break
        failures += 1
        assert ran.returncode == 2, ran.stderr
        assert "no space left on device" in ran.stderr.replace("cp: ", "")
        assert "Traceback" not in ran.stderr
        resumed(whole, out)
    assert failures > 5


# --- Read-only folders --------------------------------------------------------------------------


def respect_permissions():
    """Programs that this process executes cannot write read-only files, root's neither."""
    if os.getuid() == 0:
        assert ctypes.CDLL(None).prctl(DROP_CAPABILITY, OVERRIDE_PERMISSIONS, 0, 0, 0) == 0


@pytest.fixture
def locked(whole, tmp_path):
    """A finished run, an unfinished one and a cache in folders that cannot be written, and the
    options of a process that cannot write them."""
    shutil.copytree(whole.out, tmp_path / "run")
    shutil.copytree(whole.out, tmp_path / "unfinished")
    (tmp_path / "unfinished/summary.json").unlink()
    (tmp_path / "cache").mkdir()
    paths = [tmp_path, *tmp_path.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    variables = environment(tmp_path / "cache", HOME=str(tmp_path), MPLCONFIGDIR="/tmp")
    yield tmp_path, {"env": variables, "preexec_fn": respect_permissions}
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_read_only_folders(whole, locked):
    folder, options = locked
    run, unfinished = str(folder / "run"), str(folder / "unfinished")
    commands = [
        train_or_resume("jax", folder / "new"),
        ["resume", unfinished],
        ["render", run],
        ["render", run, "--curves"],
    ]
    for argv in commands:
        said = refused(start(whole.cache, *argv, **options))
        assert "permission denied" in said.lower() or "read-only" in said.lower()
    for argv in (["resume", run], ["evaluate", run, "--episodes", "2"]):
        finish(start(whole.cache, *argv, **options))


# --- Two processes, damaged checkpoints ---------------------------------------------------------


def test_a_second_process_is_refused(whole, tmp_path):
    out = tmp_path / "run"
    first = start(whole.cache, *train_or_resume("jax", out), "--quiet")
    while len(metrics(out)) < 2:
        assert first.poll() is None
        time.sleep(0.01)
    second = start(whole.cache, "resume", str(out), "--quiet")
    assert "another process is working on this run" in refused(second)
    finish(first)
    assert outcome(out) == whole.outcome


@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
def test_the_newest_checkpoint_is_damaged(whole, tmp_path, damage):
    out = tmp_path / "run"
    process = start(whole.cache, *train_or_resume("jax", out), "--quiet")
    while len(checkpoint.newest_first(out / "checkpoints")) < 2 or len(metrics(out)) < 12:
        assert process.poll() is None
        time.sleep(0.01)
    assert interrupt(process, 0.0, signal.SIGKILL)
    newest, older = checkpoint.newest_first(out / "checkpoints")
    data = newest.read_bytes()
    if damage == "removed":
        newest.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
        newest.write_bytes(data[:middle] if damage == "cut" else flipped)
    said = finish(start(whole.cache, "resume", str(out)))
    assert damage == "removed" or f"; resuming from {older.name}" in said
    assert "from step" in said
    assert outcome(out) == whole.outcome


def test_what_was_edited_is_named(whole, tmp_path):
    out = shutil.copytree(whole.out, tmp_path / "run")
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    records[0]["return"] = 1.0
    (out / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    assert "metrics.jsonl" in refused(start(whole.cache, "resume", str(out)))
