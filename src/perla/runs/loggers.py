"""Loggers: receivers of a run's records beside its folder, chosen by name.

`tensorboard` and `csv` write into the run's folder. `wandb` and `mlflow` are extras, and send to
the places that their own environment variables name.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from perla.analysis.load import flatten
from perla.config import to_json
from perla.envs.bridges.optional import import_optional
from perla.errors import UserError, nearest, resume_command
from perla.files import decode, write_atomic
from perla.runs.pictures import CURVES, REPLAY
from perla.runs.spec import Run
from perla.runs.store import Folder, Record, finite_values, mean, metrics

LOGGERS = {
    "tensorboard": "perla.runs.tensorboard:TensorBoard",
    "csv": "perla.runs.loggers:CsvFile",
    "wandb": "perla.runs.log_wandb:WandB",
    "mlflow": "perla.runs.log_mlflow:MLflow",
}
"""Name → module and class."""
EXTRAS = ("wandb", "mlflow")
"""The loggers whose package of the same name may be missing."""
DEFAULT = ("tensorboard",)


@runtime_checkable
class Logger(Protocol):
    """A receiver of a run's records. It is made with the run's folder, the run, and the records of
    the evaluation from which it resumes."""

    def __init__(self, folder: Folder, run: Run, latest: Sequence[Record]) -> None: ...

    def consume(self, records: Sequence[Record]) -> None:
        """Receive one evaluation of every seed."""
        ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run is finished, and its pictures are drawn."""
        ...

    def close(self) -> None:
        """No call follows. The run may be unfinished."""
        ...


class Loggers:
    """Several loggers as one."""

    def __init__(self) -> None:
        self.loggers: list[Logger] = []

    def open(
        self, names: Sequence[str], folder: Folder, run: Run, latest: Sequence[Record]
    ) -> None:
        """Open the loggers `names` of the run in `folder`, from its records `latest` on."""
        for name in names:
            module, _, kind = LOGGERS[name].partition(":")
            make = getattr(importlib.import_module(module), kind)
            self.loggers.append(make(folder, run, latest))

    def consume(self, records: Sequence[Record]) -> None:
        """Pass on one evaluation of every seed."""
        for logger in self.loggers:
            logger.consume(records)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Pass on the end of the run."""
        for logger in self.loggers:
            logger.finish(summary)

    def close(self) -> None:
        """Close all."""
        for logger in self.loggers:
            logger.close()


def check_loggers(names: str | Iterable[str]) -> tuple[str, ...]:
    """`names`, each once, also from text such as `csv,wandb`, or `none`. Raises `UserError` for an
    unknown one, or for a package that is not installed, with the command that installs it."""
    if isinstance(names, str):
        names = () if names == "none" else names.split(",")
    names = tuple(dict.fromkeys(names))
    for name in names:
        if name not in LOGGERS:
            raise nearest(name, LOGGERS, what="logger")
        if name in EXTRAS:
            import_optional(name)
    return names


@contextmanager
def explained_logger(name: str, folder: Path) -> Iterator[None]:
    """Turn any exception of a logger's package into a `UserError` in one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--log {name}: {reason}; `{resume_command(folder)}` continues without it"
        ) from None


# --- What loggers send --------------------------------------------------------------------------


def scalars(records: Sequence[Record]) -> dict[str, float]:
    """Every metric of each seed, as `return/seed_0`, and its mean, as `return/mean`."""
    found = {
        f"{name}/seed_{record['seed']}": float(value)
        for record in records
        for name, value in metrics(record).items()
        if value is not None
    }
    for name in metrics(records[0]):
        if values := finite_values(records, name):
            found[f"{name}/mean"] = mean(values)
    return found


def hyperparameters(run: Run) -> dict[str, Any]:
    """The run's facts and all settings of its learner, by dotted name."""
    facts = decode(to_json(run), dict[str, Any], source="run")
    config = facts.pop("config")
    return facts | flatten(config)


def results(summary: Mapping[str, Any]) -> dict[str, float]:
    """The interquartile means of the final, best and absolute return."""
    return {f"{kind}_return": float(value) for kind, value in summary["iqm"].items()}


def drawn(folder: Path) -> list[Path]:
    """The pictures of a run that exist."""
    return [folder / name for name in (CURVES, REPLAY) if (folder / name).is_file()]


def identifier(folder: Path, run: Run) -> str:
    """A name by which a resumed run finds what it has logged before."""
    return hashlib.sha256(f"{folder.resolve()} {run.identity}".encode()).hexdigest()[:16]


# --- CSV ----------------------------------------------------------------------------------------


class CsvFile:
    """`metrics.csv`: the lines of `metrics.jsonl` as a table, a row for each."""

    def __init__(self, folder: Folder, run: Run, latest: Sequence[Record]) -> None:
        self.folder = folder

    def consume(self, records: Sequence[Record]) -> None:
        """Write the file anew: a metric may appear at any evaluation, and a resumed run may have
        lost some."""
        rows = self.folder.records()
        names = dict.fromkeys(name for row in rows for name in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.folder.path / "metrics.csv", text.getvalue().encode(), durable=False)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
