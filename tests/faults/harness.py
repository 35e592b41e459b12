"""Runs in processes that are interrupted, and their comparison with uninterrupted ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import host_envs
from perla.runs.store import CLOCKS
from test_resume import outcome

TESTS = Path(host_envs.__file__).parent
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 1200.0
"""Seconds after which a process counts as hung."""
TOKEN = "PERLA_FAULTS"
"""The environment variable that marks the processes of a chain."""

EAGER = ["--checkpoint-seconds", "0.2"]
"""Checkpoints as often as a tiny run has time for."""
SHORT = ["--num-evaluations", "12", "--eval-episodes", "2", "--absolute-episodes", "4"]
FORAGING = ["--env", "lbf:Foraging-5x5-2p-1f-v2", "--steps", "4000", "--seeds", "2", *SHORT]
RUNS = {
    "jax": ["perla-ippo", *FORAGING, "--num-envs", "2", "--rollout-length", "10", "--hidden-size",
            "8", "--actor-network", "gru", "--normalize-rewards", "--anneal-lr"],
    "records": ["perla-ippo", *FORAGING, "--num-evaluations", "50", "--num-envs", "2",
                "--rollout-length", "10", "--hidden-size", "8", "--log", "none"],
    "replay": ["qmix", *FORAGING, "--num-envs", "2", "--hidden-size", "8", "--buffer-size", "16",
               "--batch-size", "4", "--epsilon-decay-steps", "1000"],
    "host": ["perla-mappo", "--env", "tiny:patience", "--steps", "4800", "--num-envs", "8",
             "--rollout-length", "6", "--hidden-size", "8", *SHORT],
}  # fmt: skip
"""The arguments of `perla train` for each kind of run."""


def environment(cache: Path, **added: str) -> dict[str, str]:
    """The environment of a process: the cache, and the modules of these tests."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PERLA_CACHE": str(cache), "PYTHONPATH": path} | added


def start(cache: Path, *argv: str, **options: Any) -> subprocess.Popen:
    """Start a command of perla, with a checkpoint as often as possible."""
    command = [sys.executable, str(TESTS / "faults" / "tiny.py"), *argv]
    if argv[0] in ("train", "resume"):
        command += EAGER
    options.setdefault("env", environment(cache))
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Wait for a process, which must end with `status` and without a traceback; its output."""
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, (process.args, process.returncode, error)
    assert "Traceback" not in error, error
    return out + error


def train_or_resume(kind: str, out: Path) -> list[str]:
    """The command that begins or continues a run, whatever a kill has left."""
    if (out / "config.json").exists():
        return ["resume", str(out)]
    return ["train", *RUNS[kind], "--out", str(out)]


def metrics_path(out: Path) -> Path:
    """The file with a run's metrics."""
    return out / "metrics.jsonl"


def metrics(out: Path) -> list[dict]:
    """The complete lines of a run's metrics, without clocks."""
    path = metrics_path(out)
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    records = map(json.loads, lines)
    return [{k: v for k, v in each.items() if k not in CLOCKS} for each in records]


class Reference:
    """An uninterrupted run of a kind, and how long it took."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.cache, self.out = kind, folder / "cache", folder / kind
        finish(start(self.cache, *train_or_resume(kind, folder / f"{kind}-warm"), "--quiet"))
        began = time.monotonic()
        finish(start(self.cache, *train_or_resume(kind, self.out), "--quiet"))
        self.seconds = time.monotonic() - began
        self.outcome = outcome(self.out)


def interrupt(process: subprocess.Popen, delay: float, signum: int) -> bool:
    """Send a signal after `delay` seconds and wait for the end; false if that came before."""
    try:
        process.communicate(timeout=delay)
        assert process.returncode == 0
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signum)
    process.communicate(timeout=PATIENCE)
    return process.returncode != 0
