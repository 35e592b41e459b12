"""Names of methods from the settings that differ, and runs that differ in their seeds alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from perla.analysis.align import align
from perla.analysis.fair import check_budgets, check_environments
from perla.analysis.load import Curves

SHOWN = 3
"""Most settings in a label; of more, as many as tell the runs apart."""


def label(runs: Sequence[Curves]) -> list[Curves]:
    """`runs` with names that tell different settings apart.

    A run's own name (`Curves.method`) is extended where runs of that name on one task differ in
    their settings: by the preset if that decides, as `ippo epymarl`, and else by the settings, as
    `ippo lr=0.001`.
    """
    by_name: dict[str, list[Curves]] = {}
    for run in runs:
        by_name.setdefault(run.method, []).append(run)
    labels = {name: _labels(same) for name, same in by_name.items()}
    return [
        replace(run, method=" ".join(filter(None, (run.method, labels[run.method][_key(run)]))))
        for run in runs
    ]


def merge(runs: Sequence[Curves]) -> tuple[list[Curves], list[str]]:
    """Join the runs that differ in nothing but their seeds; returns lines on seeds that are left
    out because an earlier run has them.

    Raises `UserError` if runs of one name on one task had different budgets.
    """
    groups: dict[tuple[str, str, str], list[Curves]] = {}
    for run in runs:
        groups.setdefault((run.method, run.task, _key(run)), []).append(run)
    merged, notes = [], []
    for group in groups.values():
        joined, said = _join(group)
        merged += joined
        notes += said
    return merged, notes


def _key(run: Curves) -> str:
    """A text that is equal for runs with equal settings."""
    return json.dumps([run.source, run.algo, run.settings], sort_keys=True, default=str)


# --- Labels -------------------------------------------------------------------------------------


def _labels(runs: Sequence[Curves]) -> dict[str, str]:
    """Key → the words that distinguish its settings from those of the others; "" if none do."""
    by_key = {_key(run): run for run in runs}
    tasks = {run.task: {_key(other) for other in runs if other.task == run.task} for run in runs}
    if all(len(keys) == 1 for keys in tasks.values()):
        return dict.fromkeys(by_key, "")
    facts = {key: _facts(run) for key, run in by_key.items()}
    presets = {key: run.preset for key, run in by_key.items()}
    if _distinct(presets.values()):
        return presets
    together = [{key: facts[key] for key in keys} for keys in tasks.values() if len(keys) > 1]
    names = _decisive(together)
    short = _short_names(names)
    return {
        key: " ".join(f"{short[name]}={_text(known.get(name))}" for name in names)
        for key, known in facts.items()
    }


def _facts(run: Curves) -> dict[str, Any]:
    """Everything by which runs of one name may differ."""
    return {"source": run.source, "algo": run.algo} | run.settings


def _decisive(groups: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """The names of the facts that differ within a group, all or, of many, a few that suffice to
    tell the members of every group apart."""
    every = dict.fromkeys(name for group in groups for facts in group.values() for name in facts)
    differing = [
        name
        for name in every
        if any(len({_text(f.get(name)) for f in group.values()}) > 1 for group in groups)
    ]
    if len(differing) <= SHOWN:
        return differing
    chosen: list[str] = []

    def kinds(names: Sequence[str]) -> int:
        """The number of members that `names` tell apart, over all groups."""
        return sum(
            len({tuple(_text(f.get(name)) for name in names) for f in group.values()})
            for group in groups
        )

    while kinds(chosen) < kinds(differing):
        rest = [name for name in differing if name not in chosen]
        chosen.append(max(rest, key=lambda name: kinds([*chosen, name])))
    return chosen


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Dotted name → its last part, or the whole if two have the same last part."""
    last = {name: name.rpartition(".")[2] for name in names}
    parts = list(last.values())
    return {name: part if parts.count(part) == 1 else name for name, part in last.items()}


def _distinct(values: Iterable[object]) -> bool:
    values = list(values)
    return len(set(values)) == len(values)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value))
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


# --- Seeds --------------------------------------------------------------------------------------


def _join(runs: Sequence[Curves]) -> tuple[list[Curves], list[str]]:
    """One run with the seeds of all, and lines on seeds that occur twice."""
    first, *others = runs
    if not others or not all(run.finished for run in runs):
        return list(runs), []
    notes, parts = [], [first]
    seeds = list(first.seeds)
    for run in others:
        again = [seed for seed in run.seeds if seed in seeds]
        if again and not run.has_seed_numbers:
            run, again = _renumbered(run, seeds), []
        kept = [index for index, seed in enumerate(run.seeds) if seed not in again]
        if again:
            words = "seed" if len(again) == 1 else "seeds"
            notes.append(
                f"{run.path}: {words} {', '.join(map(str, again))} left out, as {first.path} or a "
                "run that is joined with it has them too"
            )
        if kept:
            check_budgets(first, run)
            check_environments(first, run)
            parts.append(_select(run, kept))
            seeds += parts[-1].seeds
    parts, said = align(parts)
    return [_stack(parts)], notes + said


def _renumbered(run: Curves, taken: Sequence[int]) -> Curves:
    start = max(taken) + 1
    return replace(run, seeds=tuple(range(start, start + len(run.seeds))))


def _select(run: Curves, indices: Sequence[int]) -> Curves:
    """`run` with the seeds at `indices` only."""
    rows = list(indices)

    def chosen(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: each[rows] for name, each in values.items()}

    return replace(
        run,
        seeds=tuple(run.seeds[index] for index in rows),
        budget=replace(run.budget, seeds=len(rows)),
        metrics=chosen(run.metrics),
        final=chosen(run.final),
        best=chosen(run.best),
        absolute=chosen(run.absolute),
    )


def _stack(runs: Sequence[Curves]) -> Curves:
    """One run with the seeds of `runs`, in the order of the seeds."""
    if len(runs) == 1:
        return runs[0]

    def joined(tables: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        names = [name for name in tables[0] if all(name in table for table in tables)]
        return {name: np.concatenate([table[name] for table in tables]) for name in names}

    whole = replace(
        runs[0],
        seeds=tuple(seed for run in runs for seed in run.seeds),
        dropped=tuple(seed for run in runs for seed in run.dropped),
        steps=np.mean([run.steps for run in runs], axis=0),
        metrics=joined([run.metrics for run in runs]),
        final=joined([run.final for run in runs]),
        best=joined([run.best for run in runs]),
        absolute=joined([run.absolute for run in runs]),
    )
    # Runs that were made one after another took the time of all together. Equal clocks of a file
    # are one: in the layout of marl-eval that of all seeds stands with each.
    clocks = {(run.path, run.wall_seconds.tobytes()): run.wall_seconds for run in runs}
    seconds = np.sum(list(clocks.values()), axis=0)
    whole.metrics["wall_seconds"] = np.tile(seconds, (len(whole.seeds), 1))
    order = np.argsort(whole.seeds, kind="stable").tolist()
    return _select(whole, order)
