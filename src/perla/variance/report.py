"""A diagnosis in words, tables, a picture and files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
from matplotlib.figure import Figure

from perla import machine
from perla.analysis import noise_figure
from perla.analysis.figures import render
from perla.analysis.stats import Score
from perla.errors import UserError
from perla.files import explained, write_atomic
from perla.variance.components import ESTIMATORS
from perla.variance.diagnosis import PARTS, Diagnosis, percent
from perla.variance.plan import Plan

FILE, PICTURE = "diagnose.json", "diagnose.png"
PART_NAMES = {
    "others": "others now",
    "others_later": "others later",
    "own_later": "own later",
    "environment": "environment",
    "critic": "critic (bias)",
}
"""The columns of the parts."""
REMOVED_NAMES = {
    "state": "V̄(s)",
    "baseline": "V(s, a₋ᵢ)",
    "marginal": "policy embedding",
    "counterfactual": "COMA",
    "averaged": "averaged Q̃",
}
"""The columns of the noise that exact critics remove."""

NOTES = (
    "* the method's own λ. Shares are unbiased estimates with 95% intervals, and may be below 0.",
    "Policy embedding with critic_form state-value (the default) can have the gain of a critic "
    "without error alone; with action-value the averaged Q̃ replaces the return. See diagnose.md.",
)
"""Lines below the tables."""


def part_rows(diagnosis: Diagnosis) -> list[dict[str, str]]:
    """The table of the advantage's error: a row for each λ, with shares."""
    return [
        {"λ": _lam(diagnosis, i), "mean square": f"{diagnosis.mean_square[i]:z.3g}"}
        | {PART_NAMES[name]: percent(diagnosis.parts[name][i]) for name in PARTS}
        for i in range(len(diagnosis.lambdas))
    ]


def removed_rows(diagnosis: Diagnosis) -> list[dict[str, str]]:
    """The table of the policy gradient's noise: a row for each λ, with the shares that exact
    critics remove, and the most that policy embedding gains."""
    return [
        {"λ": _lam(diagnosis, i), "signal/noise": f"{diagnosis.snr[i]:z.2g}"}
        | {words: percent(diagnosis.removed[name][i]) for name, words in REMOVED_NAMES.items()}
        | {"gain at most": percent(diagnosis.gain[i])}
        for i in range(len(diagnosis.lambdas))
    ]


def _lam(diagnosis: Diagnosis, index: int) -> str:
    return f"{diagnosis.lambdas[index]:g}" + "*" * (index == diagnosis.place)


def figure(plan: Plan, diagnosis: Diagnosis) -> Figure:
    """The picture."""
    return noise_figure.noise(
        diagnosis.lambdas,
        diagnosis.mean_square,
        {PART_NAMES[name]: scores for name, scores in diagnosis.parts.items()},
        {words: diagnosis.removed[name] for name, words in REMOVED_NAMES.items()},
        title=plan.title,
    )


def facts(plan: Plan, diagnosis: Diagnosis) -> dict[str, Any]:
    """Everything about a diagnosis, for JSON: an estimate is `[point, low, high]`, and an infinite
    number null."""
    settings = msgspec.to_builtins(plan.config)
    return {
        "forecast": diagnosis.forecast,
        "env": plan.env,
        "env_options": dict(plan.env_options),
        "algo": plan.algo,
        "preset": plan.preset,
        "config": settings,
        "steps": plan.steps,
        "states": plan.states,
        "seed": plan.seed,
        "parts_are": PARTS,
        "estimators_are": ESTIMATORS,
        **{name: _plain(value) for name, value in diagnosis._asdict().items()},
        "versions": machine.versions(),
        "hardware": machine.hardware(),
    }


def _plain(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Score() | tuple():
            return [_plain(each) for each in value]
        case dict():
            return {name: _plain(each) for name, each in value.items()}
        case _:
            return value


def check_folder(folder: Path) -> None:
    """Raise `UserError` if `folder` has a diagnosis, or is no folder."""
    if (folder / FILE).exists():
        raise UserError(f"{folder}: has a diagnosis already; name another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is no folder")


def save(folder: Path, plan: Plan, diagnosis: Diagnosis) -> None:
    """Write `diagnose.json` and `diagnose.png`. Raises `UserError` if `folder` has a diagnosis or
    the file system refuses."""
    check_folder(folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    data = msgspec.json.format(msgspec.json.encode(facts(plan, diagnosis)), indent=2)
    write_atomic(folder / PICTURE, render(figure(plan, diagnosis)))
    write_atomic(folder / FILE, data + b"\n")
