"""`perla list`: what there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from perla.cli.parser import Parser
from perla.config import Config, tag
from perla.errors import nearest


def list_command(argv: Sequence[str]) -> int:
    """Print a list."""
    parser = Parser("list", "What there is.")
    parser.add_argument("what", metavar="|".join(LISTS), nargs="?", default="algos")
    what = parser.parse(argv).what
    if what not in LISTS:
        raise nearest(what, LISTS, what="list")
    rows = list(LISTS[what]())
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}".rstrip())
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
        yield name, _settings(recipe)


def _presets() -> Iterator[tuple[str, str]]:
    from perla.methods.presets import PRESETS

    for name, preset in PRESETS.items():
        yield name, preset.about


def _experiments() -> Iterator[tuple[str, str]]:
    from perla.suites.paper import EXPERIMENTS

    for name, experiment in EXPERIMENTS.items():
        yield name, f"{experiment.figure}: {experiment.claim}"


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_setting(value)}" for name, value in settings.items())


def _setting(value: Any) -> str:
    if not isinstance(value, Config):
        return "none" if value is None else str(value)
    inner = {name: getattr(value, name) for name in value.__struct_fields__}
    return tag(value) + (f" ({_settings(inner)})" if inner else "")


LISTS = {
    "envs": _envs,
    "algos": _algos,
    "presets": _presets,
    "experiments": _experiments,
}
