"""Weights & Biases: one of its runs for each run of perla."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perla.envs.bridges.optional import import_optional
from perla.runs.loggers import (
    drawn,
    explained_logger,
    hyperparameters,
    identifier,
    results,
    scalars,
)
from perla.runs.spec import Run
from perla.runs.store import Folder, Record

NAME = "wandb"


class WandB:
    """Metrics over environment steps, hyperparameters, results and pictures.

    Its own variables say where they go: `WANDB_MODE` (online, offline), `WANDB_PROJECT` (perla by
    default), `WANDB_ENTITY`, …. Files are kept in the run's folder. A resumed run continues the
    same run there.
    """

    def __init__(self, folder: Folder, run: Run, latest: Sequence[Record]) -> None:
        self.path = folder.path
        self.wandb = import_optional(NAME)
        with explained_logger(NAME, self.path):
            settings = self.wandb.Settings(silent=True, console="off")
            self.run = self.wandb.init(
                project=None if settings.project else "perla",
                dir=str(self.path),
                id=identifier(self.path, run),
                name=self.path.name,
                group=f"{run.algo} on {run.env}",
                resume="allow",
                config=hyperparameters(run),
                settings=settings,
            )
            self.run.define_metric("*", step_metric="environment_steps")
        self.done = False

    def consume(self, records: Sequence[Record]) -> None:
        """Log one evaluation."""
        with explained_logger(NAME, self.path):
            self.run.log(scalars(records) | {"environment_steps": records[0]["step"]})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Log the results and pictures."""
        with explained_logger(NAME, self.path):
            for name, value in results(summary).items():
                self.run.summary[name] = value
            self.run.log(
                {
                    path.stem: self.wandb.Video(str(path), format="gif")
                    if path.suffix == ".gif"
                    else self.wandb.Image(str(path))
                    for path in drawn(self.path)
                }
            )
        self.done = True

    def close(self) -> None:
        """End the process of W&B; an unfinished run is marked as such."""
        with explained_logger(NAME, self.path):
            self.run.finish(exit_code=0 if self.done else 1)
