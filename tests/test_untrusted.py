"""A run folder or a suite file from somebody else executes nothing, and nothing in it reaches a
terminal as a command."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest

from perla.analysis import load as analysis
from perla.analysis import run_figure
from perla.cli import main, tables
from perla.envs import registry
from perla.envs.registry import names_code
from perla.errors import HIDDEN, UserError, visible
from perla.runs import checkpoint, execute
from perla.suites import suite, worker
from untrusted import (  # noqa: F401
    COMMANDS,
    OURS,
    RUN,
    edit,
    fixture_folder,
    fixture_here,
    fixture_refused,
    fixture_whole,
    write_suite,
)

pytestmark = pytest.mark.usefixtures("here")

CODE = (
    "hostile:make",
    "pettingzoo:hostile",
    "gym:hostile:Hostile-v0",
    "gym:GymV26Environment-v0",
    "subprocess:run",
    "os:system",
    "sys:exit",
)
"""Ids that are code."""
SHELL = {"args": "touch called", "command": "touch called", "shell": True, "env_id": "hostile:X"}
"""Options that would be a shell."""


def nothing_ran() -> bool:
    return not (Path("imported").exists() or Path("called").exists() or "hostile" in sys.modules)


# --- What a file names is not run ---------------------------------------------------------------


@pytest.mark.parametrize("id", CODE)
@pytest.mark.parametrize("command", COMMANDS)
def test_code_that_a_run_folder_names_is_not_run(refused, folder, command, id):
    edit(folder, env=id, env_options=SHELL)
    line = refused(command, str(folder))
    assert f"{folder}/config.json: its environment {id} is code" in line
    assert f"--env {id}, or by --trust" in line
    assert nothing_ran()


@pytest.mark.parametrize("id", CODE)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_code_that_a_suite_names_is_not_run(refused, dry, id):
    write_suite(env=["matrix:climbing", id], env_options=SHELL)
    line = refused("suite", "suite.json", *dry)
    assert f"suite.json: its environment {id} is code" in line
    assert nothing_ran()
    assert not Path("runs").exists()


def test_what_reads_results_makes_no_environment(folder, capsys):
    edit(folder, env="hostile:make")
    shutil.copytree(folder, "other")
    edit(Path("other"), algo="mappo")
    assert main(["compare", str(folder), "other", "--out", "both", "--quiet"]) == 0
    assert "hostile" not in sys.modules
    assert nothing_ran()


def test_a_file_that_nests_without_end_is_told_in_a_line(refused, folder):
    (folder / "config.json").write_text('{"run": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert "not the configuration of a run" in refused("evaluate", str(folder))
    Path("suite.json").write_text('{"name": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert "suite.json: " in refused("suite", "suite.json")


def test_what_is_pasted_from_the_line_is_one_word(refused, folder):
    edit(folder, env="hostile:make; touch called")
    assert "--env 'hostile:make; touch called', or" in refused("resume", str(folder))


def test_every_family_is_known_to_be_code_or_not():
    plain = {family for family in registry.FAMILIES if not names_code(f"{family}:any")}
    simulated = {"lbf", "matrix", "congestion", "skirmish"}
    assert plain == simulated | {"mamujoco", "smac", "jaxmarl", "jumanji"}
    assert names_code("any.module:function")
    assert not names_code("climbing")


@pytest.mark.parametrize("flags", [("--env", "ours:make"), ("--trust",)])
@pytest.mark.parametrize("command", COMMANDS)
def test_code_that_the_user_names_is_run(here, command, flags, capsys):
    execute.train(RUN.replace(env="ours:make"), here / "own")
    Path("called").unlink()
    (here / "own/summary.json").unlink()
    assert main([command, str(here / "own"), *flags]) == 0
    assert Path("called").exists()


@pytest.mark.parametrize("flags", [("--env", "ours:make"), ("--trust",)])
def test_a_suite_runs_what_the_user_names(capsys, flags):
    write_suite(env="ours:make")
    assert main(["suite", "suite.json", *flags, "--dry-run"]) == 0
    assert Path("called").exists()


def test_the_processes_of_a_suite_trust_what_their_parent_was_allowed(capfd):
    write_suite(env="ours:make")
    assert main(["suite", "suite.json", "--env", "ours:make", "--quiet"]) == 0
    assert Path("called").exists()
    assert len(list(Path("runs/theirs/cells").rglob("summary.json"))) == 1


def test_another_environment_than_the_files_is_a_mistake(refused, folder):
    edit(folder, env="hostile:make")
    line = refused("evaluate", str(folder), "--env", "ours:make")
    assert f"unknown environment of {folder}/config.json 'ours:make'" in line
    write_suite(env="hostile:make")
    assert "unknown environment of suite.json" in refused(
        "suite", "suite.json", "--env", "hostile:make", "--env", "ours:make"
    )
    assert nothing_ran()


def test_in_python_nothing_is_trusted_but_what_is_said(here):
    out = here / "own"
    execute.train(RUN.replace(env="ours:make"), out)
    Path("called").unlink()
    for read in (execute.load, execute.resume):
        with pytest.raises(UserError, match="ours:make is code"):
            read(out)
        with pytest.raises(UserError, match="ours:make is code"):
            read(out, trust=False)
    assert not Path("called").exists()
    for trust in (True, "ours:make", ["ours:make"]):
        assert execute.load(out, trust=trust)[0].env == "ours:make"
    assert execute.resume(out, trust=True).actor()
    write_suite(env="ours:make")
    with pytest.raises(UserError, match="ours:make is code"):
        suite.load(Path("suite.json"))
    assert suite.load(Path("suite.json"), trust=True).cells()


def test_a_cells_folder_smuggles_in_no_other_environment(folder):
    (folder / "summary.json").unlink()
    edit(folder, env="hostile:make", env_options=SHELL)
    for env in ("matrix:climbing", "ours:make"):
        with pytest.raises(UserError, match="holds another run"):
            worker.work(RUN.replace(env=env), folder)
    assert nothing_ran()


# --- Only makers of environments are called -----------------------------------------------------

MAKERS = f"""{OURS}
import functools, subprocess
from collections import OrderedDict
from os import system
from shutil import rmtree
from subprocess import run
from sys import exit
from typing import Any

def nothing() -> None: Path("wrong").touch()
def text() -> "str": Path("wrong").touch()
def process() -> subprocess.CompletedProcess: Path("wrong").touch()
def either() -> int | str: Path("wrong").touch()
def listed() -> list[Any]: Path("wrong").touch()

class Bare:
    def __init__(self): Path("wrong").touch()

bound = functools.partial(run, "touch wrong", shell=True)
length = functools.partial(len)

def unknown() -> "NowhereImported": return matrix.make_env("climbing")
def anything() -> Any: return matrix.make_env("climbing")
def maybe() -> matrix.MatrixGame | None: return matrix.make_env("climbing")
def told() -> matrix.MatrixGame: return matrix.make_env("climbing")

@functools.cache
def cached(): return matrix.make_env("climbing")

class Builder:
    def __call__(self, game): return matrix.make_env(game)
    def build(self): return matrix.make_env("climbing")

built = functools.partial(Builder(), "climbing")
method = Builder().build
"""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("run", "subprocess.run is of Python's standard library"),
        ("system", "posix.system is of Python's standard library"),
        ("rmtree", "standard library"),
        ("exit", "sys.exit is of Python's standard library"),
        ("OrderedDict", "standard library"),
        ("bound", "subprocess.run is of Python's standard library"),
        ("length", "builtins.len is of Python's standard library"),
        ("nothing", "makers.nothing returns None"),
        ("text", "makers.text returns str"),
        ("process", "makers.process returns CompletedProcess"),
        ("either", "makers.either returns int | str"),
        ("listed", "makers.listed returns list"),
        ("Bare", "the class makers.Bare lacks reset or step"),
    ],
)
def test_what_makes_no_environment_is_not_called(name, why):
    Path("makers.py").write_text(MAKERS)
    with pytest.raises(UserError) as told:
        registry.make_env(f"makers:{name}")
    assert str(told.value).startswith(f"makers:{name} makes no environment: ")
    assert why in str(told.value)
    assert not Path("wrong").exists()


@pytest.mark.parametrize(
    "name", ["make", "unknown", "anything", "maybe", "told", "cached", "built", "method"]
)
def test_what_may_make_one_is_called(name):
    Path("makers.py").write_text(MAKERS)
    assert registry.make_env(f"makers:{name}").spec.id == "matrix:climbing"


@pytest.mark.parametrize(
    "id",
    ["antigravity:fly", "subprocess:run", "os:system", "sys:exit", "os.path:join",
     "pettingzoo:antigravity", "gym:antigravity:Fly-v0"],
)  # fmt: skip
def test_the_standard_library_is_not_even_imported(id):
    pytest.importorskip("gymnasium")
    before = "antigravity" in sys.modules
    with pytest.raises(UserError, match="is a module of Python's standard library"):
        registry.make_env(id)
    assert ("antigravity" in sys.modules) == before


def test_a_file_called_like_one_of_its_modules_is_the_users_own(here):
    Path("antigravity.py").write_text(OURS)
    try:
        assert registry.make_env("antigravity:make").spec.id == "matrix:climbing"
    finally:
        sys.modules.pop("antigravity", None)


def test_what_makes_whatever_its_arguments_name_is_not_called():
    for id, options in (
        ("perla:make", {"env": "hostile:make"}),
        ("perla.envs.registry:make_env", {"id": "hostile:make"}),
    ):
        with pytest.raises(UserError, match="makes what its arguments name"):
            registry.make_env(id, **options)
    pytest.importorskip("gymnasium")
    with pytest.raises(UserError, match="makes what its arguments name"):
        registry.make_env("gymnasium:make", id="hostile:X-v0")
    with pytest.raises(UserError, match="makes what its options name"):
        registry.make_env("gym:GymV26Environment-v0", env_id="hostile:X-v0")
    assert nothing_ran()


def test_a_module_of_pettingzoos_is_held_to_the_same():
    pytest.importorskip("pettingzoo")
    Path("hostile.py").write_text("from subprocess import run as parallel_env")
    sys.path.insert(0, os.getcwd())
    try:
        with pytest.raises(UserError, match=r"subprocess\.run is of Python's standard library"):
            registry.make_env("pettingzoo:hostile", args="touch called", shell=True)
    finally:
        sys.path.remove(os.getcwd())
    assert not Path("called").exists()


# --- Nothing that a terminal obeys comes out of a file ------------------------------------------

ESCAPES = ("\x1b[2J", "\x07", "\r", "a\nb", "\x9b31m", "\u202egnp", "\u2066", "\u2028", "\ud800")


@pytest.mark.parametrize("text", ESCAPES)
def test_hidden_characters_are_made_visible(text):
    for said in (visible(text), str(UserError(f"{text}: wrong"))):
        assert not any(unicodedata.category(character) in HIDDEN for character in said)
    assert visible("Größe – ∞ 漢字 'x'") == "Größe – ∞ 漢字 'x'"


@pytest.mark.parametrize("text", ESCAPES[:-1])
@pytest.mark.parametrize(
    "changes",
    [
        lambda text: {"env": f"lbf:{text}"},
        lambda text: {"env_options": {"reward": text}},
        lambda text: {"env_options": {text: 1}},
        lambda text: {"algo": text},
        lambda text: {"preset": text},
    ],
    ids=["env", "option", "option's name", "algo", "preset"],
)
def test_a_run_has_no_control_characters(refused, folder, changes, text):
    edit(folder, **changes(text))
    assert f"{folder}/config.json" in refused("evaluate", str(folder))
    with pytest.raises(UserError, match="control characters"):
        analysis.load(folder) if "env_options" not in changes(text) else execute.load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "\x1b[2J"},
        {"label": "\x1b[2J"},
        {"env": "lbf:\x1b[2J"},
        {"algo": ["ippo", "\x1b[2J"]},
        {"preset": "\x1b[2J"},
        {"settings": {"\x1b[2J": 1}},
        {"settings": {"lr": "\x1b[2J"}},
        {"env_options": {"x": "\x1b[2J"}},
    ],
    ids=str,
)
def test_a_suite_has_no_control_characters(refused, changes):
    write_suite(**changes)
    assert "suite.json: " in refused("suite", "suite.json", "--dry-run")


def test_paths_are_shown_and_not_obeyed(refused, folder, capsys):
    evil = folder.rename(folder.parent / "\x1b[31mrun\u202e")
    assert main(["render", str(evil)]) == 0
    (evil / "metrics.jsonl").write_text("{")
    assert main(["compare", str(evil), str(evil), "--out", "both"]) != 0
    said = "".join(capsys.readouterr())
    assert "\\x1b[31mrun\\u202e" in said
    assert visible(said.replace("\n", "")) == said.replace("\n", "")
    shutil.rmtree(evil / "checkpoints")
    assert "\\x1b[31mrun" in refused("evaluate", str(evil))


def test_markup_is_shown_and_not_obeyed(folder, capsys):
    tables.say("[red]line[/red] :bomb:")
    tables.say(tables.table("[red]title", [{"[bold]name": "[link=x]cell[/]"}]))
    edit(folder, algo="[red]ippo[/blue]")
    (folder / "summary.json").unlink()
    newest, *_ = checkpoint.newest_first(folder / "checkpoints")
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    assert main(["resume", str(folder)]) == 0
    assert main(["evaluate", str(folder)]) == 0
    said = capsys.readouterr().out
    for text in ("[red]line[/red] :bomb:", "[red]title", "[bold]name", "[link=x]cell[/]"):
        assert text in said
    # The line before training, the title of its table, and that of the evaluation.
    assert said.count("[red]ippo[/blue]") == 3
    assert newest.exists()


def test_figures_take_names_as_they_are(folder):
    edit(folder, env=r"matrix:$\frac$", algo=r"$\nothing{$")
    assert run_figure.curves(folder).startswith(b"\x89PNG")
