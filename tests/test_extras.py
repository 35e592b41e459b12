"""Without an extra everything else works, and its use names the command that installs it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from perla.cli.doctor import OPTIONAL
from perla.plugins import install_command

ROOT = Path(__file__).parents[1]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
EXTRAS = [extra for extra in DECLARED if extra not in ("cuda", "bench")]
MODULES = {"mlflow-skinny": "mlflow", "gymnasium-robotics": "gymnasium_robotics"}
"""Packages whose module has another name."""

BLOCK = """
import importlib.metadata, os, sys

MODULES, PACKAGES = (os.environ[name].split() for name in ("ABSENT_MODULES", "ABSENT_PACKAGES"))
version = importlib.metadata.version


class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def installed(package):
    if package in PACKAGES:
        raise importlib.metadata.PackageNotFoundError(package)
    return version(package)


sys.meta_path.insert(0, Absent)
importlib.metadata.version = installed
"""
"""The start of every process in which modules cannot be imported."""

TINY = (
    "--env matrix:climbing --steps 40 --seeds 1 --num-envs 2 --rollout-length 5 --hidden-size 8 "
    "--num-layers 1 --num-evaluations 1 --quiet"
)
USES = {
    "mujoco": "train ippo --env mamujoco:Ant-2x4 --steps 10",
    "jaxmarl": "train ippo --env jaxmarl:MPE_simple_spread_v3 --steps 10",
    "jumanji": "train ippo --env jumanji:RobotWarehouse-v0 --steps 10",
    "gym": "train ippo --env gym:lbforaging:Foraging-5x5-2p-1f-v3 --steps 10",
    "pettingzoo": "train ippo --env pettingzoo:mpe2.simple_spread_v3 --steps 10",
    "ray": "suite suite.json --executor ray --out s",
    "tune": "tune ippo --env matrix:climbing --steps 10 --space space.json --trials 2",
    "slurm": "suite suite.json --executor slurm --out s",
    "wandb": f"train ippo {TINY} --log wandb",
    "mlflow": f"train ippo {TINY} --log mlflow",
    "notebook": "",
    "export": "export r --format onnx",
}
"""Commands that need an extra; a notebook's is in Python."""
ALL = f"""
import sys
TINY = {TINY!r}
from perla.cli import main
import perla
assert main(["train", "ippo", *TINY.split(), "--out", "r"]) == 0
for line in sys.stdin:
    name, _, command = line.strip().partition(" ")
    print("---", name, file=sys.stderr, flush=True)
    if command:
        assert main(command.split()) != 0, command
    else:
        try:
            perla.load("r").curves()
        except perla.UserError as error:
            print(error, file=sys.stderr)
"""


def packages(extra: str) -> list[str]:
    """The names of the packages of an extra."""
    return [re.split(r"[<>=!\[]", each)[0] for each in DECLARED[extra]]


def without(extras, tmp_path):
    """A function that runs Python in `tmp_path` without these extras."""
    absent = [package for extra in extras for package in packages(extra)]
    (tmp_path / "start").mkdir(exist_ok=True)
    (tmp_path / "start" / "sitecustomize.py").write_text(BLOCK)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "start"), str(ROOT / "src")]),
        "ABSENT_MODULES": " ".join(MODULES.get(each, each) for each in absent),
        "ABSENT_PACKAGES": " ".join(absent),
    }

    def run(*arguments, **options):
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True,
            text=True, timeout=600, **options,
        )  # fmt: skip

    return run


def test_every_use_of_an_extra_names_the_command_that_installs_it(tmp_path):
    run = without(EXTRAS, tmp_path)
    grid = {"env": "matrix:climbing", "algo": "ippo", "steps": 10}
    (tmp_path / "suite.json").write_text(json.dumps({"name": "s", "grids": [grid]}))
    (tmp_path / "space.json").write_text(json.dumps({"lr": [1e-3, 1e-4]}))
    done = run("-c", ALL, input="".join(f"{name} {line}\n" for name, line in USES.items()))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    answers = dict(part.split("\n", 1) for part in done.stderr.split("--- ")[1:])
    assert list(answers) == EXTRAS
    for extra, answer in answers.items():
        (line,) = [line for line in answer.splitlines() if "pip install" in line]
        assert line.endswith(install_command(extra)), line


@pytest.mark.slow
@pytest.mark.parametrize("absent", [EXTRAS, *([extra] for extra in EXTRAS)], ids=",".join)
def test_without_extras_all_else_works(absent, tmp_path):
    run = without(absent, tmp_path)
    doctor = run("-m", "perla", "doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert "\nready" in doctor.stdout
    for extra in absent:
        assert f"`{install_command(extra)}`" in doctor.stdout, extra
    for command in (f"train ippo {TINY} --out r", f"compare ippo perla-ippo {TINY} --out c"):
        done = run("-m", "perla", *command.split())
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_command_names_packages_so_that_it_needs_no_release_of_perla(extra):
    pip, install, *named = shlex.split(install_command(extra))
    assert (pip, install) == ("pip", "install")
    assert sorted(re.split(r"[<>=!]", each)[0] for each in named) == sorted(packages(extra))


def test_the_doctor_knows_every_extra():
    assert {extra for extra, _ in OPTIONAL.values() if extra} == set(EXTRAS)
