"""Results of a study: its budget, the best settings, and their comparison with the preset's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perla.config import VERSION, encode
from perla.files import write_atomic
from perla.runs.sinks import clock
from perla.suites.suite import Cell
from perla.tuning.search import Trial, best
from perla.tuning.study import Study, check_seeds, words

BEST = "best.json"
"""The file with the best settings as a run on the reporting seeds, and the facts of the search."""


def facts(study: Study, history: Sequence[Trial]) -> dict[str, Any]:
    """The search in strict JSON: its budget, its seeds, the space and the best trial."""
    plan, chosen = study.plan, best(history)
    assert chosen is not None
    return {
        "algo": plan.algo,
        "env": plan.env,
        "metric": plan.metric,
        "tuning_seeds": list(plan.tuning_seeds),
        "search": plan.search,
        "pruner": plan.pruner,
        **study.budget(history)._asdict(),
        "best_trial": chosen.number,
        "best_value": chosen.value,
        "settings": chosen.settings,
        "space": {
            name: {field: value for field, value in _plain(each).items() if _is_set(value)}
            for name, each in plan.space.items()
        },
    }


def budget_in_words(study: Study, history: Sequence[Trial]) -> str:
    """The budget of the search in a sentence."""
    budget, seeds = study.budget(history), study.plan.tuning_seeds
    return (
        f"Tuning took {budget.trials} trials ({budget.complete} complete, {budget.pruned} pruned, "
        f"{budget.failed} failed), {budget.steps:,} environment steps and "
        f"{clock(budget.seconds)} of runs, on seed{'s' * (len(seeds) > 1)} "
        f"{', '.join(map(str, seeds))}, which the results below leave out."
    )


def best_in_words(study: Study, history: Sequence[Trial]) -> str:
    """The best trial in a sentence."""
    chosen = best(history)
    assert chosen is not None
    return (
        f"Best: trial {chosen.number} with {study.plan.metric} {chosen.value:.4g} on the tuning "
        f"seeds: {words(chosen.settings)}"
    )


def write_best(study: Study, history: Sequence[Trial], seeds: Sequence[int]) -> Path:
    """Write `BEST`, which `perla train --config` takes. Returns its path."""
    chosen = best(history)
    assert chosen is not None
    check_seeds(study.plan.tuning_seeds, seeds)
    run = study.plan.run(chosen.settings, seeds)
    file = {"settings_version": VERSION, "run": run, "tuning": facts(study, history)}
    write_atomic(study.folder / BEST, encode(file))
    return study.folder / BEST


def report_cells(study: Study, history: Sequence[Trial], seeds: Sequence[int]) -> list[Cell]:
    """The runs on the reporting `seeds`: the settings as they were before, and the best ones; only
    the first if both are equal. Raises `UserError` if one of `seeds` is a tuning seed."""
    plan, chosen = study.plan, best(history)
    assert chosen is not None
    check_seeds(plan.tuning_seeds, seeds)
    before = Cell(plan.algo, {}, plan.run({}, seeds))
    after = Cell(f"{plan.algo} tuned", chosen.settings, plan.run(chosen.settings, seeds))
    return [before] if after.run == before.run else [before, after]


def _is_set(value: Any) -> bool:
    """False for what a dimension leaves out; a range may begin at 0."""
    return value is not None and value is not False and value != {}


def _plain(dimension: Any) -> dict[str, Any]:
    return {name: getattr(dimension, name) for name in dimension.__struct_fields__}
