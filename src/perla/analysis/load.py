"""Results of run folders, read without JAX and without the code of training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from perla.config import check_text, check_version
from perla.errors import UserError
from perla.files import check_run_folder, decode, read_regular


@dataclass(frozen=True)
class Budget:
    """The budget of a run, in the numbers that were used; None where nobody recorded one. Runs are
    comparable if the numbers that both know are equal."""

    steps: int | None
    """Environment steps of each seed."""
    seeds: int
    """Number of seeds."""
    num_evaluations: int | None
    """Evaluations spread evenly over the run, after the one before training."""
    eval_episodes: int | None
    """Episodes per evaluation."""
    absolute_episodes: int | None
    """Episodes of the absolute metric."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The learning curves and results of a run, or of equal runs with other seeds."""

    path: Path
    method: str
    """The name of the method in results: that of the algorithm, unless it was replaced."""
    algo: str
    preset: str
    env: str
    environment: dict[str, Any]
    """Facts about the environment: id, agents, time limit, rules, …"""
    budget: Budget
    seeds: tuple[int, ...]
    """The seeds with results."""
    dropped: tuple[int, ...]
    """The seeds that were dropped because of numbers that were not finite."""
    steps: np.ndarray
    """Environment steps of a seed at every evaluation, averaged over seeds: `[evaluation]`."""
    metrics: dict[str, np.ndarray]
    """Metrics by name: `[seed, evaluation]`, NaN where there is no value."""
    final: dict[str, np.ndarray]
    """Metrics at the last evaluation: `[seed]`. Empty until the run is finished."""
    best: dict[str, np.ndarray]
    """Metrics and the `step` at the best evaluation: `[seed]`. Empty until the run is finished."""
    absolute: dict[str, np.ndarray]
    """Metrics of the best parameters in a further evaluation: `[seed]`. Empty until the run is
    finished."""
    flops_per_step: float | None
    """Floating-point operations of training's matrix products per environment step."""
    finished: bool
    settings: dict[str, Any] = field(default_factory=dict)
    """All settings of the learner, by name; those of a variant are beside its tag."""
    source: str = "perla"
    """The program that made the run."""
    meaning: tuple[str, ...] = ()
    """Lines on the meaning of another program's steps and returns."""
    names_policy: bool = True
    """False if the source does not say that its returns are of greedy actions."""
    has_seed_numbers: bool = True
    """False if the source numbers no seeds, so that `seeds` only counts them."""

    @property
    def task(self) -> str:
        """The environment's id, which identifies a task."""
        return str(self.environment["id"])

    @property
    def wall_seconds(self) -> np.ndarray:
        """Wall-clock seconds until each evaluation, the same for all seeds: `[evaluation]`. NaN if
        nobody recorded them."""
        if "wall_seconds" not in self.metrics:
            return np.full(len(self.steps), np.nan)
        return self.metrics["wall_seconds"].mean(axis=0)


def load(path: Path) -> Curves:
    """Load the run in the folder `path`, without evaluations that not every seed has.

    Raises `UserError`, with the file and the reason, if `path` is no run folder, is damaged, holds
    anything but regular files and directories, or has no evaluation yet.
    """
    check_run_folder(path)
    version = _read(path / "config.json", _Version).settings_version
    check_version(version, source=str(path / "config.json"))
    facts = _read(path / "config.json", _Facts)
    texts = [facts.run.env, facts.run.algo, facts.run.preset, facts.environment]
    check_text(texts, name=str(path / "config.json"))
    run = facts.run
    records = _records(path / "metrics.jsonl")
    finished = is_finished(path)
    summary = _read(path / "summary.json", _Summary) if finished else _Summary()
    dropped = tuple(entry.seed for entry in summary.dropped)
    seeds = tuple(seed for seed in run.seeds if seed not in dropped)
    if (finished and tuple(entry.seed for entry in summary.seeds) != seeds) or not seeds:
        raise UserError(f"{path / 'summary.json'}: damaged (not the seeds of config.json)")
    by_seed = [
        {record["evaluation"]: record for record in records if record["seed"] == seed}
        for seed in seeds
    ]
    common = sorted(set.intersection(*(set(own) for own in by_seed)))
    if not common:
        raise UserError(f"{path / 'metrics.jsonl'}: no evaluation of every seed yet")
    metrics = _columns([own[index] for index in common for own in by_seed])
    shape = (len(common), len(seeds))
    metrics = {name: column.reshape(shape).T for name, column in metrics.items()}
    return Curves(
        path=path,
        method=run.algo,
        algo=run.algo,
        preset=run.preset,
        env=run.env,
        environment=facts.environment,
        budget=_budget(facts),
        seeds=seeds,
        dropped=dropped,
        steps=metrics["step"].mean(axis=0),
        metrics={name: metrics[name] for name in sorted(set(metrics) - set(_COUNTERS))},
        final=_columns([entry.final for entry in summary.seeds]),
        best=_columns([entry.best for entry in summary.seeds]),
        absolute=_columns([entry.absolute for entry in summary.seeds]),
        flops_per_step=summary.flops_per_step,
        finished=finished,
        settings=flatten(run.config),
    )


def _budget(facts: _Facts) -> Budget:
    """The budget of a run: its plan where `config.json` has one, and else what it asked for."""
    run, plan = facts.run, facts.evaluations
    return Budget(
        steps=run.steps,
        seeds=len(run.seeds),
        num_evaluations=run.num_evaluations if plan is None else plan.num_evaluations,
        eval_episodes=run.eval_episodes if plan is None else plan.eval_episodes,
        absolute_episodes=run.absolute_episodes if plan is None else plan.absolute_episodes,
    )


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name. A variant counts by its tag, and its own settings stand beside it:
    `{"value": {"kind": "embedded", "gamma": 1}}` is `{"value": "embedded", "value.gamma": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            inner = {f"{name}.{key}": each for key, each in flatten(value).items()}
            tag = inner.pop(f"{name}.kind", None)
            flat |= ({} if tag is None else {name: tag}) | inner
        else:
            flat[name] = value
    return flat


def is_finished(path: Path) -> bool:
    """True if the run in `path` has a `summary.json`. An empty one does not count: a loss of power
    may leave it."""
    try:
        return os.lstat(path / "summary.json").st_size > 0
    except OSError:
        return False


def read_summary(path: Path) -> dict[str, Any]:
    """The content of `summary.json` of the finished run in `path`.

    Raises `UserError` if it is damaged.
    """
    file = path / "summary.json"
    if not _read(file, _Summary).seeds:
        raise UserError(f"{file}: damaged (it has no seeds)")
    return _read(file, dict[str, Any])


STUDY, TRIALS = "study.json", "trials"
"""The file that marks the folder of a study of `perla tune`, and its folder of trials."""


def study_of(path: Path) -> Path | None:
    """The study whose trials `path` belongs to; None if there is none."""
    parts = (path.absolute(), *path.absolute().parents)
    folders = (each.parent for each in parts if each.name == TRIALS)
    return next((each for each in folders if os.path.lexists(each / STUDY)), None)


def check_no_trial(path: Path) -> None:
    """Raise `UserError` if `path` belongs to the trials of a study: their seeds chose settings, and
    results on these seeds are too good."""
    study = study_of(path.resolve())
    if study is not None:
        raise UserError(
            f"{path}: is a trial of perla tune, whose seeds chose the settings; {study} has the "
            "results of the reporting seeds"
        )


# --- The parts of the files that are read here --------------------------------------------------

_COUNTERS = ("seed", "evaluation", "step")

_Record = dict[str, float | None]


class _Run(msgspec.Struct):
    env: str
    algo: str
    steps: int
    seeds: tuple[int, ...]
    num_evaluations: int | None
    eval_episodes: int | None
    absolute_episodes: int | None
    preset: str = "default"
    config: dict[str, Any] = {}


class _Plan(msgspec.Struct):
    """The evaluations that a run makes, with every number chosen."""

    num_evaluations: int
    eval_episodes: int
    absolute_episodes: int


class _Version(msgspec.Struct):
    settings_version: Any = None


class _Facts(msgspec.Struct):
    run: _Run
    environment: dict[str, Any]
    evaluations: _Plan | None = None

    def __post_init__(self) -> None:
        if not self.run.seeds or "id" not in self.environment:
            raise ValueError("it names no seeds or no environment")


class _SeedSummary(msgspec.Struct):
    seed: int
    final: _Record
    best: _Record
    absolute: _Record


class _Dropped(msgspec.Struct):
    seed: int
    reason: str


class _Summary(msgspec.Struct):
    seeds: tuple[_SeedSummary, ...] = ()
    dropped: tuple[_Dropped, ...] = ()
    flops_per_step: float | None = None


def _read(path: Path, kind: Any) -> Any:
    try:
        return decode(read_regular(path), kind, source=path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{path.parent}: not a run folder ({path.name}: {reason})") from None


def _records(path: Path) -> list[dict[str, float]]:
    """Read the complete lines of `metrics.jsonl`; a line that is being written has no end yet."""
    try:
        lines = read_regular(path).split(b"\n")[:-1]
    except FileNotFoundError:
        return []  # Before the first evaluation.
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    records: list[_Record] = [decode(line, _Record, source=path) for line in lines]
    for record in records:
        if any(record.get(name) is None for name in (*_COUNTERS, "wall_seconds")):
            raise UserError(f"{path}: damaged (a line without seed, evaluation, step or clock)")
    return [_numbers(record) for record in records]


def _numbers(record: _Record) -> dict[str, float]:
    return {name: np.nan if value is None else value for name, value in record.items()}


def _columns(records: Sequence[Mapping[str, float | None]]) -> dict[str, np.ndarray]:
    """Turn records into columns by name, NaN where a record has no value."""
    names = {name for record in records for name in record}
    return {
        name: np.array([record.get(name) for record in records], dtype=float)
        for name in sorted(names)
    }
