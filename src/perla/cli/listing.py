"""`perla list`: methods, environments, presets, estimators, mixers and experiments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from perla.cli.parser import Parser
from perla.errors import nearest, page


def list_command(argv: Sequence[str]) -> int:
    """Print a list."""
    parser = Parser(
        "list", "List methods, environments, presets, estimators, mixers or experiments."
    )
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
    from perla.envs.registry import FAMILIES

    for prefix, family in FAMILIES.items():
        requires = getattr(family, "REQUIRES", None)
        for name, about in {**family.EXAMPLES, **getattr(family, "PATTERNS", {})}.items():
            yield f"{prefix}:{name}", f"{about} ({requires})" if requires else about
    yield "package.module:function", f"your own environment: {page('your-own-environment.md')}"


def _algos() -> Iterator[tuple[str, str]]:
    from perla.methods.recipes import RECIPES

    for name, recipe in RECIPES.items():
        yield name, recipe.about


def _estimators() -> Iterator[tuple[str, str]]:
    from perla.methods.estimators import ESTIMATORS

    yield from _about(ESTIMATORS)


def _mixers() -> Iterator[tuple[str, str]]:
    from perla.methods.td import MIXERS

    yield from _about(MIXERS)


def _about(settings: Mapping[str, type]) -> Iterator[tuple[str, str]]:
    """The names of settings, with the first paragraph of their docstrings."""
    for name, struct in settings.items():
        yield name, " ".join((struct.__doc__ or "").partition("\n\n")[0].split())


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
    "estimators": (
        "estimators of the average over the others' policies, for `--estimator E`",
        _estimators,
    ),
    "mixers": ("mixers of the agents' utilities; a method decides its mixer", _mixers),
    "experiments": ("experiments, for `perla reproduce EXPERIMENT`", _experiments),
}
"""The lists by name: a heading, and the rows."""
