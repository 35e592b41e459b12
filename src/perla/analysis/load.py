"""Reading run folders, without JAX and without anything of the training side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perla.errors import UserError


@dataclass(frozen=True)
class Curves:
    """The evaluations of one run."""

    path: Path
    algo: str
    env: str
    seeds: tuple[int, ...]
    steps: np.ndarray
    """Environment steps of a seed at every evaluation, averaged over seeds: `[evaluation]`."""
    metrics: dict[str, np.ndarray]
    """Each metric by name: `[seed, evaluation]`, NaN where a run has no value."""


def load(path: Path) -> Curves:
    """The run in the folder `path`; evaluations that some seed lacks are left out.

    Raises `UserError` if `path` is no run folder or cannot be read.
    """
    try:
        run = json.loads((path / "config.json").read_text())["run"]
        lines = (path / "metrics.jsonl").read_text().split("\n")[:-1]
        records = [json.loads(line) for line in lines]
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{path}: not a run folder ({error.filename}: {reason})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged run folder ({error})") from None
    seeds = tuple(run["seeds"])
    by_seed: list[dict[int, dict[str, Any]]] = [
        {record["evaluation"]: record for record in records if record["seed"] == seed}
        for seed in seeds
    ]
    common = sorted(set.intersection(*(set(own) for own in by_seed)))
    names = sorted({name for record in records for name in record} - {"seed", "evaluation"})
    metrics = {
        name: np.array(
            [[_number(own[index].get(name)) for index in common] for own in by_seed], dtype=float
        )
        for name in names
    }
    steps = metrics.pop("step", np.zeros((len(seeds), 0))).mean(axis=0)
    return Curves(path, run["algo"], run["env"], seeds, steps, metrics)


def load_all(paths: Sequence[Path]) -> list[Curves]:
    """Every run in `paths`."""
    return [load(path) for path in paths]


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
