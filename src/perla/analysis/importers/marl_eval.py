"""The JSON layout of marl-eval, which Mava, perla and others write.

environment → task → algorithm → seed → step → metric → values, one or one for each episode.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perla.analysis.importers.folder import Meaning, meanings
from perla.analysis.importers.series import Options, Series, named_return
from perla.errors import UserError
from perla.files import decode, explained, read_regular

NAMES = ("marl_eval.json", "metrics.json")
"""Names of files in this layout, in a folder of its own."""
OTHER = ("step_count", "elapsed_time", "steps_per_second")
"""Entries of a step that are not metrics of its episodes."""

Layout = dict[str, dict[str, dict[str, dict[str, dict[str, Any]]]]]


def read(path: Path, options: Options) -> list[Series]:
    """Every seed of every algorithm on every task in the file `path`. Raises `UserError` if it is
    damaged or no metric is the return."""
    with explained(path):
        layout: Layout = decode(read_regular(path), Layout, source=path)
    known = meanings(path)
    found = [
        _series(
            (path, family, task, algorithm, seed),
            entry,
            options,
            known.get(_id(family, task), {}).get(algorithm),
        )
        for family, tasks in layout.items()
        for task, algorithms in tasks.items()
        for algorithm, seeds in algorithms.items()
        for seed, entry in seeds.items()
    ]
    if not found:
        raise UserError(f"{path}: no results")
    return found


def _id(family: str, task: str) -> str:
    """The id of an environment, as perla forms it."""
    return f"{family}:{task}" if task != family else task


def _series(
    place: tuple[Path, str, str, str, str],
    entry: Mapping[str, Any],
    options: Options,
    origin: Meaning | None,
) -> Series:
    path, family, task, algorithm, seed = place
    where = f"{path}: {family}.{task}.{algorithm}.{seed}"
    steps = sorted(_steps(entry, where), key=lambda step: float(step["step_count"]))
    if not steps:
        raise UserError(f"{where}: no step")
    shared = set.intersection(*(set(step) for step in steps)) - set(OTHER)
    names = sorted(name for name in shared if all(_is_metric(step[name]) for step in steps))
    theirs = named_return(names, options, path)
    is_ours = theirs == "return_sampled" and options.tag is None
    renamed = {name: name for name in names} | ({} if is_ours else {theirs: "return"})
    metrics = {ours: [_mean(step[name]) for step in steps] for name, ours in renamed.items()}
    if all(isinstance(step.get("elapsed_time"), (int, float)) for step in steps):
        metrics["wall_seconds"] = [float(step["elapsed_time"]) for step in steps]
    found = re.search(r"\d+", seed)
    absolute = entry.get("absolute_metrics") or {}
    return Series(
        path=path,
        source="marl-eval" if origin is None else origin.source,
        method=algorithm,
        task=_id(family, task),
        seed=None if found is None else int(found[0]),
        steps=[float(step["step_count"]) for step in steps],
        metrics=metrics,
        absolute={
            renamed.get(name, name): _mean(values)
            for name, values in absolute.items()
            if _is_metric(values)
        },
        names_policy=origin is not None and origin.names_policy,
        meaning=origin.meaning
        if origin is not None
        else (
            "steps are step_count, as the file's program counts them",
            f"returns are {theirs}, averaged over an evaluation's episodes; the file does not say "
            "if actions are greedy",
        ),
    )


def _steps(entry: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    for name, step in entry.items():
        if re.fullmatch(r"(?i)step_?\d+", name):
            if not isinstance(step, dict) or not isinstance(step.get("step_count"), (int, float)):
                raise UserError(f"{where}.{name}: damaged (no step_count)")
            yield step


def _is_metric(values: Any) -> bool:
    """True for a number, or a list of numbers with at least one."""
    several = values if isinstance(values, list) else [values]
    return bool(several) and all(
        isinstance(each, (int, float)) and not isinstance(each, bool) for each in several
    )


def _mean(values: Any) -> float:
    return float(statistics.fmean(values)) if isinstance(values, list) else float(values)
