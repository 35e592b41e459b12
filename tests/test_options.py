"""Options of environments: read as literals, held against the arguments that they become."""

import enum
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

from perla.cli.train import option
from perla.config import from_json, to_json
from perla.envs import options
from perla.envs.registry import FAMILIES, env_factory, make_env
from perla.errors import UserError
from perla.methods import recipes
from perla.runs.spec import Run

if TYPE_CHECKING:
    from perla.envs.protocol import Spec as Missing


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


class Annotated:
    """An environment's constructor whose arguments are annotated."""

    def __init__(
        self,
        flag: bool = True,
        count: int = 3,
        scale: float = 1.0,
        limit: int | None = None,
        colour: Colour = Colour.RED,
        size: tuple[int, int] = (1, 2),
        names: Sequence[str] = (),
        mode: Literal["easy", "hard"] = "easy",
        version: str = "1.0",
        either: "int | str" = 0,
        unknown: "Missing" = None,
    ):
        pass

    reset = step = None


def default(flag=True, count=3, size=(1, 2), colour=Colour.RED, mode="easy", free=None, **rest):
    """A function whose arguments have defaults alone."""


def given(maker, text):
    """The argument that `--env-option text` becomes."""
    name, value = option(text)
    return options.fit("ours:make", maker, {name: value})[name]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x=False", False), ("x=false", False), ("x=TRUE", True), ("x=None", None),
        ("x=none", None), ("x=3", 3), ("x=-3", -3), ("x=1_000", 1000), ("x=007", 7),
        ("x=1e6", 1e6), ("x=(1, 2)", [1, 2]), ("x=1,2", [1, 2]), ("x=[1, 'a']", [1, "a"]),
        ("x={'a': (1,)}", {"a": [1]}), ("x='3'", "3"), ("x=a=b", "a=b"), ("x=3s5z", "3s5z"),
        ("x=a,b", "a,b"), ("x=" + "(" * 5000, "(" * 5000), ("x=", ""),
    ],
)  # fmt: skip
def test_text_is_read_as_a_literal_where_it_is_one(text, value):
    read = option(text)[1]
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize("text", ["x=nan", "x=1e400", "x={1}", "x=b'a'", "x=1j", "x=" + "9" * 30])
def test_literals_that_json_does_not_have_are_refused(text):
    with pytest.raises(UserError, match=r"--env-option x = .*: an option is true, false, none"):
        option(text)


@pytest.mark.parametrize(
    ("maker", "text", "value"),
    [
        (Annotated, "flag=False", False), (Annotated, "count=1e6", 1_000_000),
        (Annotated, "scale=2", 2), (Annotated, "limit=None", None), (Annotated, "limit=5", 5),
        (Annotated, "colour=BLUE", Colour.BLUE), (Annotated, "colour=b", Colour.BLUE),
        (Annotated, "colour=1", Colour.RED), (Annotated, "size=(3, 4)", (3, 4)),
        (Annotated, "names=['a']", ["a"]), (Annotated, "mode=hard", "hard"),
        (Annotated, "version='2.0'", "2.0"), (Annotated, "either=a", "a"),
        (Annotated, "unknown=a", "a"), (default, "flag=False", False), (default, "flag=None", None),
        (default, "count=2.5", 2.5), (default, "size=[3]", (3,)), (default, "mode=3", 3),
        (default, "colour=BLUE", Colour.BLUE), (default, "free=no", "no"), (default, "more=a", "a"),
    ],
)  # fmt: skip
def test_an_option_becomes_what_its_argument_asks_for(maker, text, value):
    fitted = given(maker, text)
    assert (fitted, type(fitted)) == (value, type(value))


@pytest.mark.parametrize(
    ("maker", "text", "message"),
    [
        (Annotated, "flag=no", "ours:make: flag = 'no': expected true or false"),
        (Annotated, "flag=0", "expected true or false"),
        (Annotated, "count=2.5", "expected a whole number"),
        (Annotated, "count=True", "expected a whole number"),
        (Annotated, "scale=fast", "expected a number"),
        (Annotated, "limit=x", "expected a whole number or none"),
        (Annotated, "colour=green", "expected one of RED, BLUE"),
        (Annotated, "size=(1, 2, 3)", r"size = \[1, 2, 3\]: expected a tuple"),
        (Annotated, "names=abc", "names = 'abc': expected Sequence"),
        (Annotated, "mode=3", "expected one of easy, hard"),
        (Annotated, "version=1.10", "expected text; text is quoted twice"),
        (default, "flag=no", "expected true or false, as its default True is"),
        (default, "count=many", "expected a whole number, as its default 3 is"),
        (default, "size=8x8", "expected a tuple"),
        (default, "colour=green", "expected one of RED, BLUE"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_in_a_line(maker, text, message):
    with pytest.raises(UserError, match=message) as caught:
        given(maker, text)
    assert "\n" not in str(caught.value)


def run(**env_options):
    config = recipes.make("ippo")
    return Run(env="lbf:x", algo="ippo", config=config, steps=1, env_options=env_options)


def test_options_are_the_same_in_python_and_json():
    values = {"a": None, "b": (1, (2, "x")), "c": {"d": [True]}, "e": "False", "f": 0.5}
    ours = run(**values)
    read = from_json(to_json(ours), Run, source="config.json")
    assert read == ours
    assert read.identity == ours.identity == run(**values | {"b": [1, [2, "x"]]}).identity
    assert read.env_options["b"] == [1, [2, "x"]]
    assert read.env_options["e"] == "False"


def test_numbers_of_numpy_and_members_of_enums_are_plain_options():
    values = run(a=np.float32(0.5), b=np.arange(3), c=np.bool_(True), d=Colour.BLUE).env_options
    assert values == {"a": 0.5, "b": [0, 1, 2], "c": True, "d": "BLUE"}
    for value in (object(), {1: 2}, {1}, float("nan"), 2**70, [float("inf")]):
        with pytest.raises(UserError, match=r"x = .*: an option is"):
            run(x=value)


def test_constructors_of_every_family_are_asked(monkeypatch):
    with pytest.raises(UserError, match="continuous_actions = 'no': expected true or false"):
        make_env("pettingzoo:mpe2.simple_spread_v3", continuous_actions="no")
    with pytest.raises(UserError, match="sight = 'far': expected a whole number"):
        make_env("gym:lbforaging:Foraging-5x5-2p-1f-coop-v3", sight="far")
    with pytest.raises(UserError, match="terminate_when_unhealthy = 'no': expected true or false"):
        make_env("mamujoco:Hopper-3x1", terminate_when_unhealthy="no")
    monkeypatch.syspath_prepend("tests")
    with pytest.raises(UserError, match="length = 'long': expected a whole number"):
        make_env("host_envs:Patience", length="long")


def test_constructors_of_registered_families_are_asked_too():
    family = types.SimpleNamespace(EXAMPLES={}, make_env=lambda name, flag=True: flag)
    with FAMILIES.added("plugin", family):
        assert env_factory("plugin:x", flag=False)() is False
        with pytest.raises(UserError, match="plugin:x: flag = 'no': expected true or false"):
            env_factory("plugin:x", flag="no")


def test_epymarls_ids_are_told_their_form_here():
    for id in ("lbforaging:Foraging-8x8-2p-2f-coop-v3", "rware:rware-tiny-2ag-v2"):
        with pytest.raises(UserError, match=f"{id} is an id of Gymnasium, .*here it is gym:{id}"):
            make_env(id)
