"""The run folder: the files of a run, readable after a kill at any moment.

config.json      the run, versions, hardware and the environment's rules
metrics.jsonl    a line per evaluation and seed
checkpoints/     the newest two, resumable to the bit
summary.json     final, best and absolute metrics; its presence says that the run is finished
marl_eval.json   the same in the marl-eval layout
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import msgspec

from perla import machine
from perla.analysis.load import is_finished, read_summary
from perla.analysis.stats import iqm
from perla.config import VERSION, check_version, from_json
from perla.envs.protocol import Spec
from perla.envs.registry import Trust, check_trust
from perla.errors import UserError, resume_command
from perla.files import (
    append,
    check_run_folder,
    decode,
    explained,
    is_temporary,
    read_regular,
    remove_temporaries,
    write_atomic,
)
from perla.runs.spec import Evaluations, Run

Record: TypeAlias = dict[str, Any]
"""One evaluation of one seed: seed, number, steps, clocks, then metrics."""

COUNTERS = (
    "seed",
    "evaluation",
    "step",
    "dropped_episodes",
    "wall_seconds",
    "steps_per_second",
)
"""The fields of a record that are not metrics."""
CLOCKS = ("wall_seconds", "steps_per_second")
"""The fields that differ between a run and its exact repetition."""


class FolderBusy(UserError):
    """Another process is working on the run."""


class FolderUsed(UserError):
    """The folder holds a run already, or something else."""


class Folder:
    """A run's folder, locked by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.lines = 0
        """The lines of `metrics.jsonl` that this process has kept or written."""
        self._digest = hashlib.sha256()
        self._lock: int | None = None

    @classmethod
    def create(
        cls, path: Path, run: Run, spec: Spec, devices: Sequence[str], plan: Evaluations
    ) -> Folder:
        """A new folder with `config.json`. Raises `UserError` if `path` exists and is not empty."""
        refuse_used(path)
        folder = cls(path)
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
        folder.lock()
        facts = {
            "settings_version": VERSION,
            "run": run,
            "evaluations": plan.as_dict(),
            "versions": machine.versions(),
            "hardware": machine.hardware() | {"devices": list(devices)},
            "environment": environment(spec),
        }
        try:
            write_atomic(path / "config.json", dump(facts))
        except UserError:
            folder.unlock()
            with suppress(OSError):
                path.rmdir()  # An empty folder would be in the way of a second attempt.
            raise
        return folder

    @classmethod
    def open(cls, path: Path) -> Folder:
        """The folder of an existing run.

        Raises `UserError` if `path` holds no run, or if it holds links, pipes or devices, which
        could reach outside the folder.
        """
        check_run_folder(path)
        if not (path / "config.json").exists():
            reason = "no config.json in it" if path.is_dir() else "no such folder"
            raise UserError(f"{path}: not a run folder ({reason})")
        return cls(path)

    def lock(self) -> None:
        """Lock the folder until the process ends; raises `FolderBusy` if another process has."""
        with explained(self.path):
            self._lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.unlock()
            raise FolderBusy(f"{self.path}: another process is working on this run") from None
        except OSError:
            pass  # A file system without locks.

    def unlock(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def run(self, trust: Trust | None = ()) -> Run:
        """The run, read strictly from `config.json`.

        Raises `UserError` if its environment is code that is not in `trust`. None: its environment
        is never made from the id in the file.
        """
        path = self.path / "config.json"
        facts = self._facts()
        check_version(facts.settings_version, source=str(path))
        result = from_json(bytes(facts.run), Run, source=str(path))
        if trust is not None:
            check_trust([result.env], trust, source=path)
        return result

    def extend(self, run: Run) -> None:
        """Make the folder that of `run`, which has more steps than it had. What it holds of its
        former end is removed first: a kill in between leaves a run that ends there again."""
        path = self.path / "config.json"
        for name in ("summary.json", "marl_eval.json"):
            with explained(self.path / name):
                (self.path / name).unlink(missing_ok=True)
        facts = decode(read_regular(path), dict[str, Any], source=path)
        write_atomic(path, dump(facts | {"run": run}))

    def check_environment(self, spec: Spec) -> None:
        """Raise `UserError` if the environment has changed since the run began."""
        if self._facts().environment != msgspec.json.decode(dump(environment(spec))):
            path = self.path / "config.json"
            raise UserError(f"{path}: {spec.id} has changed since this run began")

    def describe_versions(self) -> str:
        """The libraries that have another version than when the run began, in words; "" if none."""
        before, now = self._facts().versions, machine.versions()
        names = [name for name in now if name in before and before[name] != now[name]]
        if not names:
            return ""
        then, here = (", ".join(f"{name} {of[name]}" for name in names) for of in (before, now))
        return f"{self.path}: began with {then}, and this is {here}; numbers may differ"

    def _facts(self) -> _Facts:
        path = self.path / "config.json"
        with explained(path):
            text = read_regular(path)
        try:
            return decode(text, _Facts, source=path)
        except UserError:
            raise UserError(f"{path}: not the configuration of a run") from None

    def records(self) -> list[Record]:
        """The complete lines of `metrics.jsonl` in order. An incomplete last line is left out."""
        return self._decode(self._lines())

    def append(self, records: Iterable[Record]) -> None:
        """Append records to `metrics.jsonl`, durably and all or none."""
        lines = [line(record) for record in records]
        append(self.metrics, b"".join(lines))
        self._count(lines)

    def rewind(self, lines: int) -> list[Record]:
        """Cut `metrics.jsonl` back to its first `lines` lines, remove half-written files, and
        return the remaining records."""
        with explained(self.checkpoints):
            self.checkpoints.mkdir(exist_ok=True)
        remove_temporaries(self.path)
        remove_temporaries(self.checkpoints)
        kept = self._lines()[:lines]
        data = b"".join(kept)
        with explained(self.metrics):
            before = read_regular(self.metrics) if self.metrics.exists() else b""
        if data != before:
            write_atomic(self.metrics, data)
        self._count(kept)
        return self._decode(kept)

    @property
    def digest(self) -> str:
        """SHA-256 of the first `lines` lines of `metrics.jsonl`."""
        return self._digest.hexdigest()

    def check_metrics(self, lines: int, digest: str, checkpoint: str) -> None:
        """Raise `UserError` unless `metrics.jsonl` begins with the `lines` lines of the `digest`,
        which it had when `checkpoint` was saved."""
        found = self._lines()
        if not found and lines:
            state = "is empty" if self.metrics.exists() else "is missing"
            raise UserError(f"{self.metrics}: {state}, and had {lines} lines at {checkpoint}")
        if len(found) < lines:
            raise UserError(
                f"{self.metrics}: has {len(found)} lines, and had {lines} at {checkpoint}"
            )
        if hashlib.sha256(b"".join(found[:lines])).hexdigest() != digest:
            raise UserError(
                f"{self.metrics}: its first {lines} lines are not those of {checkpoint}"
            )

    def describe_rest(self, lines: int, evaluation: int) -> str:
        """The lines of `metrics.jsonl` after its first `lines`, in words; "" if there are none.

        A run that was killed leaves evaluations after `evaluation` there. Nothing else belongs.
        """
        rest = self._lines()[lines:]
        if not rest:
            return ""
        try:
            numbers = [record["evaluation"] for record in self._decode(rest)]
        except UserError:
            numbers = []
        if not numbers or min(numbers) <= evaluation or numbers != sorted(numbers):
            return f"has {len(rest)} lines too many after line {lines}"
        return f"has evaluations up to number {max(numbers):.0f}, later than number {evaluation}"

    def _lines(self) -> list[bytes]:
        """The complete lines of `metrics.jsonl`, with their ends."""
        with explained(self.metrics):
            data = read_regular(self.metrics) if self.metrics.exists() else b""
        return [each + b"\n" for each in data.split(b"\n")[:-1]]

    def _decode(self, lines: Iterable[bytes]) -> list[Record]:
        records: list[Record] = [
            decode(line, dict[str, int | float | None], source=self.metrics) for line in lines
        ]
        for record in records:
            if any(record.get(name) is None for name in ("seed", "evaluation", "step")):
                raise UserError(
                    f"{self.metrics}: damaged (a line without seed, evaluation or step)"
                )
        return records

    def _count(self, lines: Iterable[bytes]) -> None:
        for each in lines:
            self.lines += 1
            self._digest.update(each)

    @property
    def finished(self) -> bool:
        """True if the run is finished and everything except its pictures is written."""
        return is_finished(self.path)

    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`. Raises `UserError`, with the remedy, if it is damaged."""
        try:
            return read_summary(self.path)
        except UserError as error:
            again = resume_command(self.path)
            raise UserError(f"{error}; remove the file, and `{again}` makes it again") from None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, the last file of a run except for its pictures."""
        write_atomic(self.path / "summary.json", dump(summary))

    def write_marl_eval(self, layout: Mapping[str, Any]) -> None:
        """Write `marl_eval.json`."""
        write_atomic(self.path / "marl_eval.json", dump(layout))


class _Facts(msgspec.Struct):
    """The parts of `config.json` that are read."""

    run: msgspec.Raw
    settings_version: Any = None
    versions: dict[str, str] = {}
    environment: Any = None


def refuse_used(path: Path) -> None:
    """Raise `FolderUsed` unless `path` can become a new run folder."""
    with explained(path):
        if path.is_dir() and any(not is_temporary(file) for file in path.iterdir()):
            if (path / "config.json").exists():
                raise FolderUsed(
                    f"{path}: holds a run already; `{resume_command(path)}` continues it, or "
                    "choose another --out"
                )
            raise FolderUsed(f"{path}: exists and is not empty; choose another --out")
        if path.exists() and not path.is_dir():
            raise FolderUsed(f"{path}: is a file, not a folder")


def summarise(
    run: Run,
    records: Sequence[Record],
    absolute: Sequence[Mapping[str, float]],
    *,
    dropped: Mapping[int, str] = MappingProxyType({}),
    compile_seconds: float,
    flops_per_step: float,
) -> dict[str, Any]:
    """Final, best and absolute metrics of every seed, and their returns over seeds.

    `best` is the evaluation with the highest greedy return, the last one of equal ones. Seeds that
    were `dropped` are listed with their reasons and count in no statistic.
    """
    last = {record["seed"]: record for record in records}
    seeds: list[dict[str, Any]] = []
    for seed, final in zip(run.seeds, absolute, strict=True):
        if seed in dropped:
            continue
        evaluations = [record for record in records if record["seed"] == seed]
        best = max(
            evaluations, key=lambda record: (_number(record["return"]), record["evaluation"])
        )
        seeds.append(
            {
                "seed": seed,
                "final": metrics(last[seed]),
                "best": {"step": best["step"]} | metrics(best),
                "absolute": metrics(clean(final)),
                "dropped_episodes": sum(
                    int(_number(row.get("dropped_episodes", 0))) for row in (*evaluations, final)
                ),
            }
        )
    returns = {
        kind: [_number(entry[kind]["return"]) for entry in seeds]
        for kind in ("final", "best", "absolute")
    }
    steps = [record["step"] for seed, record in last.items() if seed not in dropped]
    wall = max(record["wall_seconds"] for record in records)
    return {
        "env": run.env,
        "algo": run.algo,
        "preset": run.preset,
        "steps": max(steps),
        "seeds": seeds,
        "dropped": [{"seed": seed, "reason": reason} for seed, reason in dropped.items()],
        "iqm": {kind: iqm(values) for kind, values in returns.items()},
        "mean": {kind: mean(values) for kind, values in returns.items()},
        "steps_per_second": sum(steps) / wall if wall > 0 else None,
        "wall_seconds": wall,
        "compile_seconds": compile_seconds,
        "flops_per_step": flops_per_step,
    }


def marl_eval(
    run: Run,
    records: Sequence[Record],
    absolute: Sequence[Mapping[str, float]],
    *,
    dropped: Container[int] = (),
) -> dict[str, Any]:
    """The results in the layout of marl-eval: environment → task → algorithm → seed → step,
    without the `dropped` seeds."""
    family, _, task = run.env.partition(":")
    seeds: dict[str, Any] = {}
    for seed, final in zip(run.seeds, absolute, strict=True):
        if seed in dropped:
            continue
        evaluations = [record for record in records if record["seed"] == seed]
        entry: dict[str, Any] = {
            f"step_{record['evaluation']}": {
                "step_count": record["step"],
                "elapsed_time": record["wall_seconds"],
                **{name: [record[name]] for name in metrics(clean(final)) if name in record},
            }
            for record in evaluations
        }
        entry["absolute_metrics"] = {name: [x] for name, x in metrics(clean(final)).items()}
        seeds[f"seed_{seed}"] = entry
    return {family: {task or family: {run.algo: seeds}}}


def metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a record, without its other fields."""
    return {name: value for name, value in record.items() if name not in COUNTERS}


def finite_values(records: Sequence[Record], name: str) -> list[float]:
    """The finite values of a metric over seeds."""
    values = (record.get(name) for record in records)
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def clean(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` with null for numbers that are not finite, which strict JSON cannot hold."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }


def line(record: Mapping[str, Any]) -> bytes:
    """`record` as a line of `metrics.jsonl`."""
    return msgspec.json.encode(clean(record)) + b"\n"


def dump(facts: Any) -> bytes:
    """`facts` as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n"


def environment(spec: Spec) -> dict[str, Any]:
    """The facts of an environment that are recorded with every result."""
    return {
        "id": spec.id,
        "agents": spec.agents,
        "actions": list(spec.actions),
        "observation": spec.obs,
        "state": spec.state,
        "limit": spec.limit,
        "reward": spec.reward,
        "rules": dict(spec.rules),
    }


def _number(value: Any) -> float:
    return -math.inf if value is None or not math.isfinite(value) else float(value)
