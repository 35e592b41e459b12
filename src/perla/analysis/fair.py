"""Conditions of a fair comparison: an unfair one ends in a line that names two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perla.analysis.load import Curves, flatten
from perla.errors import UserError, resume_command

EQUAL = ("steps", "eval_episodes", "absolute_episodes")
"""Numbers of a budget that must be equal where both are known."""


def check_fair(runs: Sequence[Curves]) -> None:
    """Raise `UserError` unless `runs` are comparable; name two runs and their difference.

    Comparable runs are finished, with one run of each method on each task. They have the same steps
    and episodes where these are known, each method has as many seeds on every task, and on each
    task the environment is the same.
    """
    if not runs:
        raise UserError("nothing to compare: no run")
    for run in runs:
        if not run.finished:
            raise UserError(f"{run.path}: not finished; `{resume_command(run.path)}` continues it")
        if run.dropped:
            raise UserError(
                f"{run.path}: seed {run.dropped[0]} was dropped, as its numbers were not finite; "
                "a comparison of the remaining seeds would favour the method"
            )
    runs_by_task = by_task(runs)
    for index, run in enumerate(runs):
        for other in runs[:index]:
            check_budgets(other, run)
    for method in dict.fromkeys(run.method for run in runs):
        first, *others = [run for run in runs if run.method == method]
        for other in others:
            check_equal(first, other, {"seeds": len(first.seeds)}, {"seeds": len(other.seeds)})
    for task, methods in runs_by_task.items():
        first, *others = methods.values()
        for other in others:
            check_environments(first, other)
        for run in runs:
            if run.method not in methods:
                hint = "; --task (in Python reading={'tasks': …}) names that of imported runs"
                imported = any(each.source != "perla" for each in runs)
                raise UserError(
                    f"{run.path} and {first.path}: {run.method} has no run on {task}"
                    + hint * imported
                )


def check_budgets(x: Curves, y: Curves) -> None:
    """Raise `UserError` if two runs had different budgets, as far as both are known."""
    for name in EQUAL:
        a, b = getattr(x.budget, name), getattr(y.budget, name)
        if a is not None and b is not None and a != b:
            hint = f"; --until {min(a, b)} compares all up to there" if name == "steps" else ""
            raise UserError(f"{x.path} and {y.path}: {name} = {a} and {b}{hint}")


def check_environments(x: Curves, y: Curves) -> None:
    """Raise `UserError` if two runs on a task had different environments; the rules of another
    program's are unknown."""
    if x.source == y.source == "perla":
        check_equal(x, y, flatten(x.environment), flatten(y.environment))


def check_equal(x: Curves, y: Curves, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Raise `UserError` with the first of the facts `a` and `b` that differs."""
    for name in dict.fromkeys((*a, *b)):
        if a.get(name) != b.get(name):
            raise UserError(f"{x.path} and {y.path}: {name} = {a.get(name)} and {b.get(name)}")


def by_task(runs: Sequence[Curves]) -> dict[str, dict[str, Curves]]:
    """Return task → method → run. Raises `UserError` if a method has two runs on a task."""
    found: dict[str, dict[str, Curves]] = {}
    for run in runs:
        other = found.setdefault(run.task, {}).setdefault(run.method, run)
        if other is not run:
            raise UserError(
                f"{other.path} and {run.path}: both are {run.method} on {run.task}; give one of "
                "them another name, or leave it out"
            )
    return found
