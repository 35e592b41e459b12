"""Endurance: after many intervals nothing has grown but the metrics."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

GROWING = ("metrics.jsonl", "events.out.tfevents")
"""Beginnings of the names of files that hold metrics."""


def rss(pid: int) -> int:
    """Bytes of memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def files(folder: Path) -> dict[str, int]:
    """The largest size of each kind of file in a folder, but those of metrics."""
    largest: dict[str, int] = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith((".", *GROWING)):
            kind = f"{path.relative_to(folder).parent}/*{path.suffix}"
            largest[kind] = max(largest.get(kind, 0), path.stat().st_size)
    return largest


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("intervals", [100_000])
def test_memory_files_and_programs_stay_as_they_are(tmp_path, intervals):
    out, log = tmp_path / "run", tmp_path / "log"
    argv = [
        sys.executable, "-m", "perla", "train", "iql", "--env", "matrix:climbing",
        "--steps", str(intervals), "--num-evaluations", str(intervals), "--num-envs", "1",
        "--rollout-length", "1", "--buffer-size", "8", "--batch-size", "2", "--hidden-size", "2",
        "--updates-per-rollout", "1", "--actor-network", "mlp", "--eval-episodes", "1",
        "--absolute-episodes", "1", "--checkpoint-seconds", "2", "--out", str(out),
    ]  # fmt: skip
    with log.open("wb") as stream:
        process = subprocess.Popen(
            argv, env=os.environ | {"JAX_LOG_COMPILES": "1"}, stdout=stream, stderr=stream
        )
    memory: list[int] = []
    programs: list[int] = []
    sizes: list[dict[str, int]] = []
    while process.poll() is None:
        time.sleep(1)
        if intervals // 20 < lines(out / "metrics.jsonl") < intervals * 0.98:
            memory.append(rss(process.pid))
            programs.append(log.read_bytes().count(b"Compiling "))
            sizes.append(files(out))
    assert process.returncode == 0, log.read_text()[-2000:]
    assert lines(out / "metrics.jsonl") == intervals + 1
    assert len(memory) > 3
    assert max(memory) < 1.05 * memory[0]
    assert programs[0] == programs[-1] > 0
    assert sizes[0].keys() == sizes[-1].keys()
    grown = {name for name, size in sizes[-1].items() if size > sizes[0][name] + 64}
    assert not grown
