"""Fixtures of a run folder from somebody else, for the tests that take it for hostile."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fake_loop
import fake_worker
from fake_loop import FakeTrainer
from perla.cli import main
from perla.errors import visible
from perla.methods.recipes import make
from perla.runs import execute
from perla.runs.spec import Run
from perla.suites import local
from perla.suites.cost import Machine

COMMANDS = ("resume", "evaluate", "render")
"""The commands that take a run folder."""

MARKS = """
from pathlib import Path
Path("imported").touch()
"""
"""A module that says that it has been imported."""
HOSTILE = f"""{MARKS}
def make(**options):
    Path("called").touch()

parallel_env = make
"""
OURS = f"""{MARKS}
from perla.envs import matrix

def make(game: str = "climbing"):
    Path("called").touch()
    return matrix.make_env(game)
"""
"""A user's own environment, which is one."""

CONFIG = make("ippo", num_envs=2, rollout_length=5)
RUN = Run(env="matrix:climbing", algo="ippo", config=CONFIG, steps=20, num_evaluations=2)


class Trainer(FakeTrainer):
    """Without learning, though it can be asked to play."""

    def play(self, actor, key, greedy):
        ones = np.ones(len(greedy))
        return SimpleNamespace(returns=ones, lengths=ones, wins=ones * np.nan)


@pytest.fixture(name="here")
def fixture_here(tmp_path, monkeypatch):
    """The current directory, with a hostile module and one of the user's own."""
    monkeypatch.chdir(tmp_path)
    fake_loop.install(monkeypatch, Trainer)
    monkeypatch.setattr(local, "PROGRAM", (fake_worker.__file__,))
    monkeypatch.setattr(Machine, "measure", lambda: Machine(1e11, 1e9))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, map(str, sys.path))))
    Path("hostile.py").write_text(HOSTILE)
    Path("ours.py").write_text(OURS)
    yield tmp_path
    for name in ("hostile", "ours", "makers"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


@pytest.fixture(name="whole", scope="module")
def fixture_whole(tmp_path_factory):
    """A finished run's folder."""
    with pytest.MonkeyPatch.context() as patch:
        fake_loop.install(patch, Trainer)
        out = tmp_path_factory.mktemp("whole") / "run"
        execute.train(RUN, out, checkpoint_seconds=0.0)
    return out


@pytest.fixture(name="folder")
def fixture_folder(whole, here):
    """A finished run's folder, to be spoilt."""
    return shutil.copytree(whole, here / "run")


@pytest.fixture(name="refused")
def fixture_refused(capsys):
    """Run a command that must end in one line on standard error, with nothing hidden in it."""

    def run(*argv: str) -> str:
        assert main(argv) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("perla: ")
        assert error.endswith("\n")
        assert visible(error[:-1]) == error[:-1]
        return error

    return run


def edit(folder: Path, **changes: Any) -> None:
    """Change the run that a folder's config.json tells of."""
    path = folder / "config.json"
    facts = json.loads(path.read_bytes())
    facts["run"].update(changes)
    path.write_text(json.dumps(facts))


def write_suite(**changes: Any) -> None:
    grid = {"env": "matrix:climbing", "algo": "ippo", "steps": 20, "seeds": 1, "num_evaluations": 2,
            "settings": {"num_envs": 2, "rollout_length": 5}}  # fmt: skip
    name = changes.pop("name", "theirs")
    Path("suite.json").write_text(json.dumps({"name": name, "grids": [grid | changes]}))
