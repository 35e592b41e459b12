"""Modes and devices of JAX with which perla cannot run end in one line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from perla.machine import accelerators

TRAIN = ("train", "ippo", "--env", "matrix:climbing", "--steps", "100")


def perla(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "perla", *argv],
        env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("JAX_ENABLE_X64", "1", "JAX_ENABLE_X64=True: perla computes with 32-bit numbers"),
        ("JAX_DEBUG_NANS", "1", "JAX_DEBUG_NANS=True: NaN marks a metric without a value"),
        ("JAX_DEBUG_INFS", "1", "JAX_DEBUG_INFS=True: −∞ marks a best return before any"),
        ("JAX_NUMPY_DTYPE_PROMOTION", "strict", "JAX_NUMPY_DTYPE_PROMOTION=strict: perla relies"),
        ("JAX_PLATFORMS", "nonsense", "JAX_PLATFORMS=nonsense: no such device here"),
        ("JAX_PLATFORMS", "cuda", "JAX_PLATFORMS=cuda: no such device here"),
    ],
)
def test_a_mode_is_refused_in_a_line(tmp_path, name, value, message):
    if value == "cuda" and accelerators():
        pytest.skip("this machine has a GPU")
    done = perla(*TRAIN, "--out", str(tmp_path / "run"), **{name: value})
    assert done.returncode == 2
    assert done.stderr.startswith(f"perla: {message}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_doctor_names_a_mode():
    done = perla("doctor", JAX_ENABLE_X64="1")
    assert done.returncode != 0
    assert "perla computes with 32-bit numbers" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr
