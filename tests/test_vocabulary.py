"""The words: plain docstrings, one meaning for each setting, and no setting by its first name."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import re
from pathlib import Path

import pytest

import perla
from perla.cli import COMMANDS, main
from perla.cli.flags import flag_name
from perla.config import VERSION, describe, field_docs, fields, variants
from perla.methods.peers import translate
from perla.methods.recipes import RECIPES, make
from perla.methods.settings import ALIASES, every_setting, fixed_fields, settings

SOURCE = Path(perla.__file__).parent
ROOT = Path(__file__).parent.parent
CHANGELOG = ROOT / "CHANGELOG.md"
"""It names both the old settings and the new ones."""

# fmt: off
FIRST_NAMES = [
    "copies", "horizon", "chunk", "epochs", "minibatches", "lam", "n", "clip", "value_clip",
    "entropy", "entropy_final", "lr_decay", "normalise_advantages", "normalise_rewards",
    "normalise_values", "deviation", "squash", "hidden", "layers",
    "critic_layers", "actor", "critic", "optimiser", "sharing", "groups", "buffer", "batch",
    "updates", "every", "tau", "epsilon", "epsilon_final", "epsilon_steps", "noise",
    "interaction", "joins", "fit", "form", "base", "q", "gradient_k", "budget", "embed",
    "hypernet", "kernels", "opt", "nopt", "latent", "latent_floor", "attention", "anneal",
    "evaluations",
]
# fmt: on
"""The settings and flags of perla's first version that have other names now."""


# --- Docstrings ---------------------------------------------------------------------------------


def docstrings(path: Path) -> list[tuple[int, str]]:
    """(line, text) of the docstrings of a module, its classes and functions, and of the strings
    below constants and fields."""
    scopes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, scopes)]
    expressions = [each.value for node in nodes for each in node.body if isinstance(each, ast.Expr)]
    return [
        (each.lineno, each.value.strip())
        for each in expressions
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]


def test_docstrings_are_found():
    texts = [text for _, text in docstrings(SOURCE / "config.py")]
    assert texts[0].startswith("Configurations:")
    assert any(text.startswith("Version of the settings' names") for text in texts)
    assert any(text.startswith("A copy with `changes`") for text in texts)


def test_docstrings_open_with_a_noun_or_a_verb():
    clauses = re.compile(r"(What|Who|Whether|How|Where)\b")
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, text in docstrings(path)
        if clauses.match(text)
    ]
    assert not wrong, f"{len(wrong)} docstrings open with a clause:\n" + "\n".join(wrong)


# --- Settings -----------------------------------------------------------------------------------


def family(type_: object) -> str:
    """The kind of value that a setting takes."""
    if variants(type_):
        return "variant"
    text = describe(type_)
    return "choice" if text.startswith("one of") and "number" not in text else text.split()[1]


def stem(text: str) -> list[str]:
    """The first words of a help text."""
    return re.findall(r"\w+", text.lower())[:2]


def test_a_setting_means_the_same_in_every_learner():
    learners = {type(make(algo)) for algo in RECIPES}
    meanings: dict[str, dict[str, tuple[str, list[str]]]] = {}
    for learner in learners:
        for setting in settings(learner):
            known = meanings.setdefault(setting.name, {})
            known[learner.__name__] = (family(setting.type), stem(setting.help))
    different = [
        f"{name}: {known}"
        for name, known in meanings.items()
        if any(meaning != next(iter(known.values())) for meaning in known.values())
    ]
    assert not different, "\n".join(different)


@pytest.mark.parametrize("algo", RECIPES)
def test_every_setting_has_help_that_is_a_sentence(algo):
    config = make(algo)
    docs = field_docs(type(config))
    for field in fields(type(config)):
        assert docs[field.name].endswith("."), field.name
        assert docs[field.name][0].isupper() or docs[field.name][0] in "`λ", field.name


@functools.cache
def helps() -> str:
    """The help of all commands and methods."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        main(["--help"])
        for command in COMMANDS:
            main([command, "--help"])
        for algo in RECIPES:
            main(["train", algo, "--help"])
    return output.getvalue()


def test_no_flag_has_one_letter_but_the_papers_k():
    assert ALIASES == {"k": "num_samples"}
    assert [name for name in every_setting() if len(name) == 1] == []
    assert set(re.findall(r"(?<![\w-])--(\w)(?![\w-])", helps())) == set()


# --- First names --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIRST_NAMES)
def test_a_first_name_is_no_setting_and_leads_to_the_present_one(name):
    assert name not in {*every_setting(), *fixed_fields(), *ALIASES}
    assert translate(flag_name(name)) is not None


def test_no_setting_is_written_by_its_first_name():
    names = "|".join(FIRST_NAMES)
    flags = "|".join(name.replace("_", "-") for name in FIRST_NAMES)
    used = re.compile(
        rf"(?<![\w-])--(no-)?({flags})(?![\w-])|`[^`]*(?<![\w.])({names}) ?=(?!=)[^`]*`"
    )
    texts = {"the help": helps()}
    pages = (set(ROOT.glob("*.md")) | set(ROOT.glob("docs/**/*.md"))) - {CHANGELOG}
    code = (*SOURCE.rglob("*.py"), *ROOT.glob("examples/**/*.py"), ROOT / "Makefile")
    for path in (*pages, *code):
        texts[str(path.relative_to(ROOT))] = path.read_text()
    wrong = [
        f"{source}:{number}: {match[0]}"
        for source, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        for match in used.finditer(line)
    ]
    assert not wrong, "\n".join(wrong)


# --- Runs of the first version ------------------------------------------------------------------


@pytest.fixture
def first_version(tmp_path):
    """A run folder from before settings had a version."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    config = {"kind": "ppo", "copies": 8, "horizon": 32, "clip": 0.2}
    run = {"env": "lbf:Foraging-5x5-2p-1f-v2", "algo": "ippo", "config": config, "steps": 100,
           "evaluations": 5}  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"run": run}))
    (folder / "metrics.jsonl").write_text("")
    return folder


@pytest.mark.parametrize("command", ["resume", "evaluate", "render", "compare"])
@pytest.mark.parametrize("version", [None, 1, VERSION + 1, "two"])
def test_a_run_of_another_version_ends_in_one_line(first_version, capsys, command, version):
    path = first_version / "config.json"
    if version is not None:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"settings_version": version}))
    before = sorted(first_version.rglob("*"))
    assert main([command, str(first_version)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    stated = 1 if version is None else version
    assert f"{path}: has settings of version {stated}, and this perla reads {VERSION}" in error
    assert sorted(first_version.rglob("*")) == before
