"""`perla list`: algorithms, environments, presets and experiments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from perla.cli.parser import Parser
from perla.errors import nearest


def list_command(argv: Sequence[str]) -> int:
    """Print a list."""
    parser = Parser("list", "List methods, environments, presets or experiments.")
    parser.add_argument("what", metavar="|".join(LISTS), nargs="?", default="algos")
    what = parser.parse(argv).what
    if what not in LISTS:
        raise nearest(what, LISTS, what="list")
    heading, listed = LISTS[what]
    rows = list(listed())
    width = max(len(name) for name, _ in rows)
    print(f"{heading}\n")
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")
    print("\nsee also:", ", ".join(f"`perla list {other}`" for other in LISTS if other != what))
    return 0


def _envs() -> Iterator[tuple[str, str]]:
    from perla.envs import matrix
    from perla.envs.bridges import gym, jaxmarl, jumanji, mujoco, pettingzoo, smac
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
    yield "smac:v2-MAP, smac:lite-MAP", "SMACv2 and SMAClite: docs/smac.md"
    yield "package.module:function", "your own environment: docs/your-own-environment.md"


def _algos() -> Iterator[tuple[str, str]]:
    from perla.methods.recipes import RECIPES

    for name, recipe in RECIPES.items():
        yield name, recipe.about


def _presets() -> Iterator[tuple[str, str]]:
    from perla.methods.presets import PRESETS

    for name, preset in PRESETS.items():
        yield name, preset.about


def _experiments() -> Iterator[tuple[str, str]]:
    from perla.experiments.catalogue import EXPERIMENTS

    for name, experiment in EXPERIMENTS.items():
        yield name, f"{experiment.figure}: {experiment.claim}"


LISTS = {
    "algos": ("methods, for `perla train ALGO`; settings: `perla train ALGO --help`", _algos),
    "envs": ("environments, for `--env ENV`", _envs),
    "presets": (
        "presets, for `--preset P`; values: `perla train ALGO --preset P --help`",
        _presets,
    ),
    "experiments": ("experiments, for `perla reproduce EXPERIMENT`", _experiments),
}
"""The lists by name: a heading, and the rows."""
