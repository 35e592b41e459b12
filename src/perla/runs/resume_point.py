"""The state from which an interrupted run resumes, saved as a checkpoint in the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from perla.errors import UserError
from perla.runs import checkpoint
from perla.runs.spec import Run
from perla.runs.store import Folder


class ResumePoint(NamedTuple):
    """The state of a run after one of its evaluations."""

    exported: Any
    """The states of all seeds as NumPy arrays."""
    evaluation: int
    """The number of the evaluation."""
    seconds: float
    """Seconds spent so far, without compilation."""
    compile_seconds: float
    """Seconds spent on compilation."""


def save(folder: Folder, run: Run, step: int, point: ResumePoint) -> None:
    """Write `point`, whose evaluation was due at `step`, and remove old checkpoints."""
    meta = checkpoint.Meta(
        run=run.identity,
        evaluation=point.evaluation,
        step=step,
        wall_seconds=point.seconds,
        compile_seconds=point.compile_seconds,
    )
    checkpoint.save(checkpoint.path_of(folder.checkpoints, step), point.exported, meta)
    checkpoint.prune(folder.checkpoints)


def load_newest(
    folder: Folder, run: Run, template: Any, say: Callable[[str], None]
) -> ResumePoint | None:
    """The newest readable checkpoint of `run` in `folder`, None if there is none yet.

    `template` holds the shapes and types of its arrays. If a checkpoint is damaged, `say` reports
    it and the one before is loaded; if all are, the newest one's `UserError` is raised.
    """
    errors = []
    for path in checkpoint.newest_first(folder.checkpoints):
        try:
            exported, meta = checkpoint.load(path, template)
            if meta.run != run.identity:
                raise UserError(
                    f"{path}: checkpoint of another configuration than "
                    f"{folder.path / 'config.json'}"
                )
        except UserError as error:
            errors.append(error)
            continue
        for damage in errors:
            say(f"{damage}; resuming from {path.name}")
        return ResumePoint(exported, meta.evaluation, meta.wall_seconds, meta.compile_seconds)
    if errors:
        raise errors[0]
    return None
