"""Runs of which every seed has several devices."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from perla.cli import main
from perla.config import encode
from perla.methods.recipes import make
from perla.runs.spec import Run

HERE = Path(__file__).parent
TRAIN = [
    "train", "ippo", "--steps", "256", "--num-envs", "4", "--rollout-length", "16",
    "--hidden-size", "8", "--eval-episodes", "2", "--absolute-episodes", "2", "--seeds", "2",
]  # fmt: skip


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_on_two_devices(which):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0",
         "-m", which, str(HERE / "on_two_devices.py")],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


def test_a_run_on_two_devices(tmp_path):
    """It resumes to the end of an uninterrupted one, and is evaluated on a single device."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    perla_command(*TRAIN, "--data-parallel", "2", "--out", whole)
    perla_command(*TRAIN, "--data-parallel", "2", "--out", parts)
    (parts / "summary.json").unlink()
    newest = max((parts / "checkpoints").iterdir())
    newest.unlink()
    perla_command("resume", parts, "--quiet")
    assert json.loads((whole / "config.json").read_text())["run"]["data_parallel"] == 2
    assert measured(whole) == measured(parts)
    assert main(["evaluate", str(whole), "--episodes", "2"]) == 0


def measured(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "wall_seconds"} for line in lines]


def perla_command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "perla", *map(str, arguments)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_digest_of_a_run_on_one_device_is_as_before():
    run = Run(env="x", algo="ippo", config=make("ippo"), steps=10)
    plain = msgspec.to_builtins(run)
    for name in ("extended_from", "warm_start", "data_parallel"):
        del plain[name]
    assert run.identity == hashlib.sha256(encode(plain)).hexdigest()
    assert run.identity != run.replace(data_parallel=2).identity


def test_processes_have_no_devices(capsys):
    assert main([*TRAIN, "--env", "pettingzoo:mpe2.simple_spread_v3", "--data-parallel", "2"]) == 2
    assert "data_parallel = 2: is for environments in JAX" in capsys.readouterr().err
