"""Commands and code on the documentation's pages are valid, and run."""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from perla.cli import COMMANDS, home, main
from perla.cli.flags import given
from perla.cli.parser import collect
from perla.envs.registry import make_env
from perla.errors import UserError
from perla.methods.settings import configure
from run_folders import write_run
from test_importers import write_events, write_sacred

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


def blocks(page: Path) -> list[str]:
    """The fenced and the indented blocks of a page."""
    text = page.read_text()
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return fenced + re.findall(r"(?:^ {4}.*\n)+", rest, re.M)


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(page: Path) -> list[tuple[list[str], str]]:
    """The words of each `perla` command of a page, and the line below it if that is an error."""
    found = []
    for block in blocks(page):
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            match = re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*perla (?=[a-z-]+\b)(.*)", line)
            if match:
                error = following.strip() if following.strip().startswith("perla: ") else ""
                found.append((shlex.split(match[1], comments=True), error))
    return found


def parse(words: list[str]) -> None:
    """Parse a command as it would be, and make the settings of a training."""
    command, *rest = words
    assert command in COMMANDS, command
    if "--help" in rest:
        return
    parser = collect(getattr(importlib.import_module(home(command)), f"{command}_command"))
    arguments = parser.parse(rest)
    if command == "train":
        algo = arguments.algo or "perla-ippo"
        configure(algo, arguments.preset, given(vars(arguments)))


COMMANDS_ON_PAGES = [
    pytest.param(words, error, id=f"{page.name}: {' '.join(words)}")
    for page in PAGES
    for words, error in commands(page)
]


def test_commands_are_found():
    assert len(COMMANDS_ON_PAGES) > 80


@pytest.mark.parametrize(("words", "error"), COMMANDS_ON_PAGES)
def test_a_command_on_a_page_is_one(words, error, capsys):
    if error and words[0] == "train":
        assert main(words) == 2
        assert capsys.readouterr().err.strip() == error
    else:
        parse(words)


@pytest.mark.parametrize("words", [["train", "ippo", "--lrr", "1"], ["resume"], ["trian"]])
def test_a_wrong_command_is_noticed(words):
    with pytest.raises((UserError, AssertionError)):
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_on_a_page_compiles_and_its_imports_are_there(page):
    for code in python_blocks(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "perla":
                module = importlib.import_module(node.module)
                assert [a.name for a in node.names if not hasattr(module, a.name)] == []


# --- All commands run ---------------------------------------------------------------------------

FEW = {"--steps": "2000", "--seeds": "2", "--num-evaluations": "2", "--eval-episodes": "2",
       "--absolute-episodes": "2"}  # fmt: skip
SMALLER = {
    "train": FEW,
    "compare": FEW,
    "tune": {"--steps": "2000", "--trials": "2", "--seeds": "1", "--num-evaluations": "2"},
    "resume": {"--steps": "3000"},
    "evaluate": {"--episodes": "2"},
}
"""The values that a command on a page has in its test, where the page's take minutes."""
LONG = {"suite", "reproduce"}
"""Commands of hours. Their tests read the same files and settings and plan all cells."""
MEASURED_ELSEWHERE = {"bench"}
"""`tests/test_bench.py` runs these."""
TASK = "lbf:Foraging-8x8-2p-2f-coop-v2"


def smaller(words: list[str]) -> list[str]:
    """A command of a page with a budget of seconds."""
    command, *rest = words
    if "--help" in rest or "--dry-run" in rest:
        return words
    if command in LONG:
        return [*words, "--dry-run"]
    trains = command in ("train", "tune") or (command == "compare" and "--steps" in rest)
    for flag, value in SMALLER.get(command, {}).items():
        if flag in rest:
            rest[rest.index(flag) + 1] = value
        elif trains:
            rest += [flag, value]
    return [command, *rest]


def can_be_had(words: list[str]) -> bool:
    """False if the environment of a command belongs to a program that is not installed here."""
    pairs = list(itertools.pairwise(words))
    ids = [word for flag, word in pairs if flag == "--env"]
    ids += ["smac:3m"] * (("--family", "smac") in pairs)
    try:
        for env in ids:
            make_env(env)
    except UserError as error:
        if "install" not in str(error):
            raise
        return False
    return True


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    """A folder with the files that pages take to be there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    shutil.copytree(ROOT / "benchmarks", "benchmarks")
    shutil.copy(ROOT / "examples/rendezvous.py", "rendezvous.py")
    for name, lr in (("one", 1e-3), ("other", 2e-3)):
        write_run(Path("runs") / name, settings={"lr": lr})
    write_run(Path("runs/ours"), env=TASK)
    key = TASK.replace("lbf:", "lbforaging:")
    write_sacred(Path("results/sacred/qmix"), env_args={"key": key, "time_limit": 50})
    tags = ("eval/return", "test_return_mean")
    for method, steps in (("ppo", (1, 4, 7)), ("mappo", (10, 60, 110))):  # PPO's are those of 16.
        points = dict(zip(steps, (0.1, 0.5, 0.6), strict=True))
        write_events(Path("tensorboard") / method, dict.fromkeys(tags, points))
    Path("scores.csv").write_text("t,score\n0,0.1\n50,0.5\n100,0.9\n")
    return tmp_path


def write_files_of(page: Path) -> None:
    """Write the JSON files that a page shows: the suite of comparisons.md, the space of tune.md."""
    names = {"comparisons.md": "rates.json", "tune.md": "space.json"}
    if page.name in names:
        text = next(block for block in blocks(page) if block.lstrip().startswith("{"))
        content = json.loads(text.split("\n\n")[0])
        Path(names[page.name]).write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page)], ids=lambda page: page.name
)
def test_the_commands_of_a_page_run_in_its_order(page, surroundings, capsys):
    write_files_of(page)
    if page.name == "policies.md":
        assert main(smaller(["train", "ippo", "--out", "DIR"])) == 0
    for words, error in commands(page):
        if "ours:make" in f"{words} {error}":
            continue  # It is about a folder from somebody else: `test_untrusted.py`.
        if words[0] in MEASURED_ELSEWHERE or not can_be_had(words):
            continue
        capsys.readouterr()
        status = main(words if error else smaller(words))
        assert status == (2 if error else 0), (words, capsys.readouterr().err)
    for code in python_blocks(page) if page.name == "tutorial.md" else ():
        exec(compile(code, str(page), "exec"), {})
