"""Runs of which every seed has several devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perla.cli import main

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
    clocks = {"wall_seconds", "steps_per_second"}
    return [{k: v for k, v in line.items() if k not in clocks} for line in lines]


def perla_command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "perla", *map(str, arguments)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_processes_have_no_devices(capsys):
    assert main([*TRAIN, "--env", "pettingzoo:mpe2.simple_spread_v3", "--data-parallel", "2"]) == 2
    assert "data_parallel = 2: is for environments in JAX" in capsys.readouterr().err
