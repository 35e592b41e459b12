"""MLflow: one of its runs for each run of perla."""

from __future__ import annotations

import time
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

NAME, TAG = "mlflow", "perla.run"
BATCH = 100
"""Parameters that MLflow takes at once."""


class MLflow:
    """Metrics over environment steps, hyperparameters, results and pictures.

    Its own variables say where they go: `MLFLOW_TRACKING_URI`, and `MLFLOW_EXPERIMENT_NAME` (perla
    by default). A resumed run continues the same run there.
    """

    def __init__(self, folder: Folder, run: Run, latest: Sequence[Record]) -> None:
        self.path = folder.path
        mlflow = import_optional(NAME)
        from mlflow.entities import Metric, Param
        from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME

        self.metric = Metric
        with explained_logger(NAME, self.path):
            self.client = mlflow.MlflowClient()
            name = MLFLOW_EXPERIMENT_NAME.get() or "perla"
            found = self.client.get_experiment_by_name(name)
            experiment = (
                self.client.create_experiment(name) if found is None else found.experiment_id
            )
            own = identifier(self.path, run)
            runs = self.client.search_runs([experiment], f"tags.`{TAG}` = '{own}'")
            if runs:
                self.id = runs[0].info.run_id
                self.client.update_run(self.id, status="RUNNING")
                return
            tags = {TAG: own, "algo": run.algo, "env": run.env}
            self.id = self.client.create_run(
                experiment, tags=tags, run_name=self.path.name
            ).info.run_id
            params = [Param(key, str(value)) for key, value in hyperparameters(run).items()]
            for start in range(0, len(params), BATCH):
                self.client.log_batch(self.id, params=params[start : start + BATCH])

    def consume(self, records: Sequence[Record]) -> None:
        """Log one evaluation."""
        self._log(scalars(records), records[0]["step"])

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Log the results and pictures."""
        self._log(results(summary), summary["steps"])
        with explained_logger(NAME, self.path):
            for path in drawn(self.path):
                self.client.log_artifact(self.id, str(path))
            self.client.set_terminated(self.id, "FINISHED")
        self.id = ""

    def close(self) -> None:
        """Mark an unfinished run as such."""
        if self.id:
            with explained_logger(NAME, self.path):
                self.client.set_terminated(self.id, "KILLED")

    def _log(self, values: Mapping[str, float], step: int) -> None:
        now = round(1000 * time.time())
        with explained_logger(NAME, self.path):
            found = [self.metric(name, value, now, step) for name, value in values.items()]
            self.client.log_batch(self.id, metrics=found)
