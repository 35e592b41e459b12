"""No input ends in a traceback: a generated campaign over command lines and files.

Each input either works or ends in one line on standard error with exit status 2, and touches no
file that existed unless it works. `make test-all` tries over ten thousand of them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from perla.analysis.gather import find, unique
from perla.cli import COMMANDS, main
from perla.cli.flags import flag_name
from perla.errors import UserError, visible
from perla.methods.recipes import RECIPES
from perla.methods.settings import every_setting
from perla.runs import checkpoint, execute, loop
from perla.suites import results
from perla.variance.critic import check as check_diagnosable
from perla.variance.plan import Plan
from untrusted import fixture_folder, fixture_here, fixture_whole  # noqa: F401

pytestmark = pytest.mark.usefixtures("here")

FEW, MANY = 20, 800
"""Inputs of a kind in `make test` and in `make test-all`; kinds with more to go wrong have twice as
many: 14 times these in total."""


def campaign(inputs: int) -> Any:
    return settings(
        max_examples=inputs,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


# --- The property -------------------------------------------------------------------------------


def digests(folder: Path) -> dict[Path, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check(*argv: str) -> int:
    """Run a command here, hold it to the property, and return its exit status."""
    before = digests(Path.cwd())
    out, error = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(error):
        status = main(argv)
    lines = error.getvalue().splitlines()
    assert "Traceback" not in error.getvalue() + out.getvalue()
    assert status in (0, 1, 2), argv
    assert all(line.startswith("perla: ") and visible(line) == line for line in lines), lines
    if status:
        assert lines, argv
        after = digests(Path.cwd())
        assert {path: after.get(path) for path in before} == before, argv
    return status


# --- What is generated --------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31 - 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "nan", "inf", "-1", "1e400", "1_0", "none", "true", "../x", "/", "~", "\0"]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(document: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values within a document."""
    children = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    return [path] + [place for key, each in children for place in places(each, (*path, key))]


@st.composite
def changed(draw: Any, document: Any) -> Any:
    """A JSON document with values replaced, removed or added."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(places(document)))
        if not place:
            if draw(st.integers(0, 20)) == 0:
                return draw(JSON)
            continue
        parent = document
        for key in place[:-1]:
            parent = parent[key]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                parent[place[-1]] = draw(JSON)
            case "remove":
                del parent[place[-1]]
            case "add" if isinstance(parent, dict):
                parent[draw(st.text(max_size=5))] = draw(JSON)
            case "add":
                parent.insert(0, draw(JSON))
    return document


@st.composite
def spoilt(draw: Any, data: bytes) -> bytes:
    """Bytes that are cut, flipped, doubled, replaced or nested without end."""
    start = draw(st.integers(0, len(data)))
    stop = draw(st.integers(start, min(len(data), start + 40)))
    match draw(st.sampled_from(["cut", "replace", "double", "flip", "nest", "binary"])):
        case "cut":
            return data[:start]
        case "replace":
            return data[:start] + draw(st.binary(max_size=8)) + data[stop:]
        case "double":
            return data[:stop] + data[start:]
        case "flip" if start < len(data):
            return (
                data[:start] + bytes([data[start] ^ draw(st.integers(1, 255))]) + data[start + 1 :]
            )
        case "nest":
            depth = draw(st.sampled_from([10, 2_000, 100_000]))
            return data[:start] + b"[" * depth + b"]" * depth + data[stop:]
    return draw(st.binary(max_size=40))


def encode(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")


def change(document: Any) -> Any:
    """Documents that were changed, as JSON or spoilt."""
    return st.one_of(changed(document).map(encode), spoilt(encode(document)))


# --- Files --------------------------------------------------------------------------------------

READERS = ("resume", "evaluate", "render", "compare")
SUITE = {
    "name": "theirs",
    "grids": [
        {"env": ["matrix:climbing"], "env_options": {}, "algo": ["ippo", "mappo"], "label": "a",
         "preset": "default", "settings": {"num_envs": [2], "rollout_length": 5, "lr": 1e-3},
         "steps": 20, "seeds": [0, 1], "num_evaluations": 2, "eval_episodes": 2,
         "absolute_episodes": 2}
    ],
}  # fmt: skip


def read(folder: Path, command: str, name: str, data: bytes) -> None:
    """Read a copy of a run folder in which a file has other content."""
    shutil.rmtree("copy", ignore_errors=True)
    shutil.copytree(folder, "copy")
    Path("copy", name).write_bytes(data)
    shutil.rmtree("both", ignore_errors=True)
    check(command, "copy", *([str(folder), "--out", "both"] if command == "compare" else []))


def newest(folder: Path) -> Path:
    return checkpoint.newest_first(folder / "checkpoints")[0]


def header(data: bytes) -> dict:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


@st.composite
def checkpoints(draw: Any, data: bytes) -> bytes:
    """A checkpoint with another header, or spoilt."""
    if draw(st.booleans()):
        return draw(spoilt(data))
    document = header(data)
    arrays = data[8 + int.from_bytes(data[:8], "little") :]
    if draw(st.booleans()):
        meta = json.loads(document["__metadata__"]["perla"])
        document["__metadata__"]["perla"] = draw(change(meta)).decode("utf-8", "replace")
        text = json.dumps(document).encode()
    else:
        text = draw(change(document))
    return len(text).to_bytes(8, "little") + text + arrays


def documents(folder: Path, name: str) -> Any:
    """Other contents of a file of a run folder."""
    data = (folder / name).read_bytes()
    if name == "metrics.jsonl":
        lines = [json.loads(line) for line in data.splitlines()]
        joined = changed(lines).map(
            lambda found: (
                b"\n".join(map(encode, found if isinstance(found, list) else [found])) + b"\n"
            )
        )
        return st.one_of(joined, spoilt(data))
    return change(json.loads(data))


def try_files(folder: Path, name: str, inputs: int) -> None:
    path = newest(folder) if name == "checkpoint" else folder / name
    contents = checkpoints(path.read_bytes()) if name == "checkpoint" else documents(folder, name)

    @campaign(inputs)
    @given(st.sampled_from(READERS), contents)
    def tried(command: str, data: bytes) -> None:
        read(folder, command, str(path.relative_to(folder)), data)

    tried()


def try_suites(inputs: int) -> None:
    @campaign(inputs)
    @given(change(SUITE))
    def tried(data: bytes) -> None:
        Path("suite.json").write_bytes(data)
        check("suite", "suite.json", "--dry-run")

    tried()


def try_payoffs(inputs: int) -> None:
    table = [[1.0, 2.5], [0, -3]]
    documents = [table, {"payoffs": table}, [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]]

    @campaign(inputs)
    @given(st.sampled_from(documents).flatmap(change))
    def tried(data: bytes) -> None:
        Path("payoffs.json").write_bytes(data)
        check("train", "ippo", "--env", "matrix:payoffs.json", "--quiet", "--steps", "20")
        shutil.rmtree("runs", ignore_errors=True)

    tried()


# --- Command lines ------------------------------------------------------------------------------

PLAIN = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
WORDS = st.one_of(
    PLAIN,
    st.sampled_from(
        ["", "-", "--", "run", "copy", "nowhere", "suite.json", "1", "-1", "0", "1e9", "1e400",
         "nan", "none", "3,", ",", "0,0", "3,7", "all", "x=1", "=", "x=", "=x", "*", "~", "run/."]
    ),
)  # fmt: skip
FAMILIES = ("gym", "pettingzoo", "smac", "jaxmarl", "jumanji")
ENVS = st.one_of(
    PLAIN,
    PLAIN.map(lambda text: f"matrix:{text}"),
    PLAIN.map(lambda text: f"lbf:Foraging-{text}"),
    st.builds("lbf:Foraging-{}x{}-{}p-{}f{}-v{}".format, *[st.integers(-1, 12)] * 4,
              st.sampled_from(["", "-coop", "-2s", "-x"]), st.integers(0, 9)),
    st.builds("{}:{}".format, st.sampled_from(FAMILIES), PLAIN),
    st.sampled_from(["matrix:climbing", "lbf:Foraging-5x5-2p-1f-v2", "matrix:nowhere.json"]),
    st.just("json:loads"),
)  # fmt: skip
OPTIONS = st.builds("{}={}".format, st.one_of(st.just("reward"), st.just("limit"), PLAIN), WORDS)
FLAGS = ("--steps", "--seeds", "--num-evaluations", "--eval-episodes", "--absolute-episodes",
         "--preset", "--checkpoint-seconds", "--keep-checkpoints", "--step-seconds",
         "--on-nonfinite", "--out", "--seed", "--episode", "--episodes", "--metric", "--threshold",
         "--executor", "--processes", "--sample", "--greedy", "--last", "--trust", "--curves",
         "--dry-run", "--help")  # fmt: skip


LONG = ("bench", "doctor", "reproduce", "tune")
"""Commands that measure, or train where little is named."""


def try_lines(inputs: int) -> None:
    flags = st.sampled_from([*FLAGS, *(flag_name(name) for name in every_setting())])

    @campaign(inputs)
    @given(
        st.sampled_from([name for name in COMMANDS if name not in LONG]),
        st.lists(WORDS, max_size=2),
        st.lists(st.tuples(flags, WORDS), max_size=3),
    )
    def tried(command: str, words: list[str], pairs: list[tuple[str, str]]) -> None:
        check(command, *words, *(word for pair in pairs for word in pair))

    tried()


def try_settings(inputs: int) -> None:
    names = st.sampled_from([flag_name(name) for name in every_setting()])
    values = st.one_of(NUMBERS.map(str), WORDS)

    @campaign(inputs)
    @given(st.sampled_from(list(RECIPES)), st.lists(st.tuples(names, values), max_size=3))
    def tried(algo: str, pairs: list[tuple[str, str]]) -> None:
        flags = [f"{name}={value}" for name, value in pairs]
        check("train", algo, "--env", "matrix:climbing", "--steps", "20", "--quiet", *flags)
        shutil.rmtree("runs", ignore_errors=True)

    tried()


def try_environments(inputs: int) -> None:
    @campaign(inputs)
    @given(ENVS, st.lists(OPTIONS, max_size=2))
    def tried(env: str, options: list[str]) -> None:
        flags = [f"--env-option={option}" for option in options]
        check("train", "ippo", f"--env={env}", "--steps", "20", "--quiet", *flags)
        shutil.rmtree("runs", ignore_errors=True)

    tried()


def try_names(inputs: int) -> None:
    """Commands and methods that are called nearly right."""
    names = st.sampled_from([*COMMANDS, *RECIPES])

    @campaign(inputs)
    @given(names, st.integers(0, 8), st.text(max_size=2), st.booleans())
    def tried(name: str, place: int, text: str, is_command: bool) -> None:
        word = name[:place] + text + name[place + 1 :]
        if is_command and word not in COMMANDS:
            check(word)
        elif word not in RECIPES:
            check("train", word, "--help")

    tried()


KINDS = {
    "config.json": lambda folder, inputs: try_files(folder, "config.json", 2 * inputs),
    "metrics.jsonl": lambda folder, inputs: try_files(folder, "metrics.jsonl", 2 * inputs),
    "summary.json": lambda folder, inputs: try_files(folder, "summary.json", inputs),
    "checkpoint": lambda folder, inputs: try_files(folder, "checkpoint", 2 * inputs),
    "suites": lambda folder, inputs: try_suites(2 * inputs),
    "payoffs": lambda folder, inputs: try_payoffs(inputs),
    "lines": lambda folder, inputs: try_lines(inputs),
    "settings": lambda folder, inputs: try_settings(inputs),
    "environments": lambda folder, inputs: try_environments(inputs),
    "names": lambda folder, inputs: try_names(inputs),
}
assert MANY * 14 >= 10_000


@pytest.fixture
def untrained(monkeypatch):
    """Neither training nor drawing is tried: a run is made, its folder too, and nothing else."""

    class Untrained(loop.RunLoop):
        def __init__(self, run, env, trainer, folder, point, options):
            self.records = []

        def execute(self):
            return {"seeds": [], "dropped": []}, []

    monkeypatch.setattr(execute, "RunLoop", Untrained)
    monkeypatch.setattr(results, "draw", lambda figure, path: None)

    def undiagnosed(self, env, progress):
        check_diagnosable(self.algo, self.config, env)
        raise UserError("nothing is diagnosed here")

    monkeypatch.setattr(Plan, "carry_out", undiagnosed)


@pytest.mark.parametrize("kind", KINDS)
def test_few_inputs(folder, untrained, kind):
    KINDS[kind](folder, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_inputs(folder, untrained, kind):
    KINDS[kind](folder, MANY)


# --- What the campaign has found, and what it cannot reach --------------------------------------


NO_JSON = {
    "not UTF-8": b"\xff\xfe",
    "not UTF-8 in a text": b'{"run": "\xff", "name": "\xff"}',
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a": ' * 100_000,
    "empty": b"",
    "binary": b"\0",
    "overflow": b"1e999",
}


@pytest.mark.parametrize("data", NO_JSON.values(), ids=NO_JSON)
def test_files_that_are_no_json(folder, untrained, data):
    Path("suite.json").write_bytes(data)
    assert check("suite", "suite.json") == 2
    Path("payoffs.json").write_bytes(data)
    assert check("train", "--env", "matrix:payoffs.json") == 2
    for name in ("config.json", "metrics.jsonl", "summary.json"):
        for command in READERS:
            read(folder, command, name, data + b"\n")


@pytest.mark.parametrize(
    "change", [{"env": []}, {"algo": []}, {"preset": []}, {"settings": {"lr": []}}]
)
def test_a_suite_without_any_value(here, change):
    grid = {"env": "matrix:climbing", "algo": "ippo", "steps": 20} | change
    Path("suite.json").write_text(json.dumps({"name": "theirs", "grids": [grid]}))
    assert check("suite", "suite.json", "--dry-run") == 2


@pytest.mark.parametrize("part", ["final", "best"])
def test_a_summary_without_the_metric_that_is_compared(folder, untrained, part):
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    for seed in summary["seeds"]:
        del seed[part]["return"]
    path.write_text(json.dumps(summary))
    assert check("compare", str(folder), "--metric", "return", "--out", "both") == 2


def as_mappo(folder: Path) -> None:
    path = folder / "config.json"
    facts = json.loads(path.read_text())
    facts["run"]["algo"] = "mappo"
    path.write_text(json.dumps(facts))


def test_a_run_counts_once_however_it_is_named(folder, untrained):
    shutil.copytree(folder, "other")
    as_mappo(Path("other"))
    Path("link").symlink_to("other")
    paths = ["other", str(folder), "other/../other", "link", "."]
    found = unique([source for path in paths for source in find(path)])
    assert [source.path for source in found] == [Path("other"), folder]
    names = [str(folder), "other", "other", f"{folder}/", "link"]
    assert check("compare", *names, "--out", "both", "--quiet") == 0
    assert check("compare", str(folder), str(folder), "--out", "one", "--quiet") == 0
    assert len(json.loads(Path("one/summary.json").read_text())["methods"]) == 1


def test_a_run_within_another_is_one_of_its_own(folder, untrained):
    shutil.copytree(folder, folder / "inner")
    as_mappo(folder / "inner")
    assert check("compare", ".", "--out", "both", "--quiet") == 0
    assert check("compare", str(folder), str(folder / "inner"), "--out", "two", "--quiet") == 0


def test_without_a_home_or_a_user_name(here, monkeypatch):
    import pwd

    from perla.runs import backend

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "PERLA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert backend.cache_folder() is None
    monkeypatch.setenv("PERLA_CACHE", "~/cache")
    assert backend.cache_folder() is None
    monkeypatch.setenv("PERLA_CACHE", "cache")
    assert backend.cache_folder() == Path("cache")
    assert check("train", "ippo", "--env", "matrix:climbing", "--steps", "20", "--quiet") == 0
