"""`perla list`: what there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from perla.cli.parser import Parser
from perla.config import Config, tag
from perla.errors import nearest


def list_command(argv: Sequence[str]) -> int:
    """Print a list."""
    parser = Parser("list", "What there is.")
    parser.add_argument("what", metavar="|".join(LISTS), nargs="?")
    what = parser.parse(argv).what
    if what is not None and what not in LISTS:
        raise nearest(what, LISTS, what="list")
    rows = list(LISTS[what or "algos"]())
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}".rstrip())
    if what is None:
        others = ", ".join(f"`perla list {name}`" for name in LISTS if name != "algos")
        print(f"\nThese are the algorithms, and how they differ; there are also {others}.")
    return 0


def _envs() -> Iterator[tuple[str, str]]:
    from perla.envs import gym, jaxmarl, jumanji, matrix, mujoco, pettingzoo, smac
    from perla.envs.foraging import PAPER_MAPS

    for name in PAPER_MAPS:
        yield f"lbf:{name}", "Level-Based Foraging"
    yield (
        "lbf:Foraging[-grid][-Ks]-SxS-Pp-Ff[-coop]-v2|v3",
        "any other map: grid observations, sight K, size S, P players, F foods",
    )
    for name, about in matrix.EXAMPLES.items():
        yield f"matrix:{name}", about
    for family, extra, examples in (
        ("mamujoco", "mujoco", mujoco.EXAMPLES),
        ("jaxmarl", "jaxmarl", jaxmarl.EXAMPLES),
        ("jumanji", "jumanji", jumanji.EXAMPLES),
        ("pettingzoo", "pettingzoo", pettingzoo.EXAMPLES),
        ("gym", "gym", gym.EXAMPLES),
    ):
        for name, about in examples.items():
            yield f"{family}:{name}", f"{about} (pip install 'perla[{extra}]')"
    for name, about in smac.EXAMPLES.items():
        yield f"smac:{name}", f"{about} (StarCraft II: docs/smac.md)"
    yield "smac:v2-MAP, smac:lite-MAP", "the same of SMACv2 and SMAClite: docs/smac.md"
    yield "package.module:function", "your own: docs/your-own-environment.md"


def _algos() -> Iterator[tuple[str, str]]:
    from perla.methods.recipes import RECIPES

    for name, recipe in RECIPES.items():
        yield name, ", ".join(f"{key} {_setting(key, value)}" for key, value in recipe.items())


def _setting(name: str, value: Any) -> str:
    """`value` of the setting `name`: of a variant, what tells one method's from another's."""
    if not isinstance(value, Config):
        return "none" if value is None else str(value)
    from perla.methods.recipes import RECIPES

    others = [recipe[name] for recipe in RECIPES.values() if name in recipe]
    apart = [
        f"{field} {getattr(value, field)}"
        for field in value.__struct_fields__
        if len({getattr(each, field) for each in others if tag(each) == tag(value)}) > 1
    ]
    return tag(value) + (f" ({', '.join(apart)})" if apart else "")


def _presets() -> Iterator[tuple[str, str]]:
    from perla.methods.presets import PRESETS

    for name, preset in PRESETS.items():
        yield name, preset.about


def _experiments() -> Iterator[tuple[str, str]]:
    from perla.suites.paper import EXPERIMENTS

    for name, experiment in EXPERIMENTS.items():
        yield name, f"{experiment.figure}: {experiment.claim}"


LISTS = {
    "envs": _envs,
    "algos": _algos,
    "presets": _presets,
    "experiments": _experiments,
}
