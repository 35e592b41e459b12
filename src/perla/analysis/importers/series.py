"""One seed's results as another program recorded them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perla.analysis.align import ends
from perla.analysis.load import Budget, Curves
from perla.errors import UserError, closest

UNKNOWN_TASK = "unknown"
"""The task of a source that names no environment, until it is given one."""

RETURN_NAMES = ("return", "mean_episode_return", "episode_return", "return_sampled")
"""Names under which programs record the return of an evaluation."""


class Options(NamedTuple):
    """The user's words on the meaning of imported files."""

    tag: str | None = None
    """The source's name of the metric that counts as the return."""
    columns: Mapping[str, str] = {}
    """Columns of a CSV file: perla's names → the file's."""
    tasks: Mapping[str, str] = {}
    """The source's environments → perla's ids; that of "" is for all others."""
    step_factor: float = 1.0
    """The number by which the source's steps are multiplied."""

    def task(self, theirs: str | None) -> str:
        """The id of the source's environment `theirs`."""
        known = UNKNOWN_TASK if theirs is None else theirs
        return self.tasks.get(known, self.tasks.get("", known))


@dataclass(frozen=True, kw_only=True)
class Series:
    """One seed's learning curve, with the source's words on it."""

    path: Path
    source: str
    """The program, such as `EPyMARL`."""
    method: str
    task: str | None
    """The environment, by perla's id if perla has it; None if the source names none."""
    seed: int | None
    """None if the source numbers none."""
    steps: Sequence[float]
    """The source's steps at every evaluation: `[evaluation]`."""
    metrics: Mapping[str, Sequence[float]]
    """Metrics by perla's names, or the source's where perla has none: `[evaluation]`."""
    absolute: Mapping[str, float] = field(default_factory=dict)
    """The absolute metric; empty if there is none."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that tell methods apart, by name."""
    meaning: tuple[str, ...] = ()
    """Lines on the meaning of the steps and returns."""
    names_policy: bool = False
    """True if the source says that `return` is of greedy, `return_sampled` of sampled actions."""

    def curves(self, options: Options) -> Curves:
        """The series as a finished run of one seed.

        Raises `UserError` if it has no evaluation, or steps or numbers that are not real.
        """
        steps = np.asarray(self.steps, dtype=float) * options.step_factor
        metrics = {name: np.asarray(row, dtype=float) for name, row in self.metrics.items()}
        if not len(steps):
            raise UserError(f"{self.path}: no evaluation")
        if not np.isfinite(steps).all() or (steps < 0).any():
            raise UserError(f"{self.path}: a step is not a number from 0 on")
        steps, order = _ascending(steps)
        table = {name: row[order][None] for name, row in metrics.items()}
        if np.isnan(table.get("return", np.zeros(1))).any():
            raise UserError(f"{self.path}: a return is not a number")
        final, best = ends(steps, table)
        factor = options.step_factor
        told = (f"steps are multiplied by {factor:g}, as --step-factor says",) * (factor != 1)
        return Curves(
            path=self.path,
            method=self.method,
            algo=self.method,
            preset="default",
            env=options.task(self.task),
            environment={"id": options.task(self.task)},
            budget=Budget(None, 1, None, None, None),
            seeds=(0 if self.seed is None else self.seed,),
            dropped=(),
            steps=steps,
            metrics=table,
            final=final,
            best=best,
            absolute={name: np.array([value]) for name, value in self.absolute.items()},
            flops_per_step=None,
            finished=True,
            settings=dict(self.settings),
            source=self.source,
            meaning=self.meaning + told,
            names_policy=self.names_policy,
            has_seed_numbers=self.seed is not None,
        )


def _ascending(steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The steps in order, each once, and the positions of the last value at each."""
    backwards = steps[::-1]
    unique, first = np.unique(backwards, return_index=True)
    return unique, len(steps) - 1 - first


def named_return(
    names: Sequence[str], options: Options, path: Path, *, known: Sequence[str] = RETURN_NAMES
) -> str:
    """The source's name of the metric that counts as the return: the user's `tag`, one of the
    `known`, or the only one.

    Raises `UserError`, with the names, if none of these is there.
    """
    if options.tag is not None:
        if options.tag in names:
            return options.tag
        close = closest(options.tag, names)
        hint = f"did you mean {close!r}?" if close else f"known: {', '.join(sorted(names))}"
        raise UserError(f"{path}: --tag {options.tag}: not among its metrics; {hint}")
    for name in known:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    raise UserError(
        f"{path}: which metric is the return? Name it by --tag, one of: {', '.join(sorted(names))}"
    )


def method_and_seed(words: Sequence[str]) -> tuple[str, int | None]:
    """The method and the seed in the name of a run, whose last word comes first.

    A word such as `qmix_seed3`, or `seed_3` below a folder `qmix`, says both; without the word
    `seed` the last word is the method.
    """
    first = words[0]
    match = re.search(
        r"(?i)[-_. ]*\bseed[-_=. ]?(\d+)[-_. ]*|[-_. ]+seed[-_=. ]?(\d+)[-_. ]*", first
    )
    if match is None:
        return first, None
    seed = int(next(filter(None, match.groups())))
    rest = f"{first[: match.start()]} {first[match.end() :]}".strip()
    rest = rest or next((word for word in words[1:] if word), first)
    return rest, seed
