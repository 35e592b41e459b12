"""The state from which an interrupted run resumes, saved as a checkpoint in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from perla.errors import UserError, resume_command
from perla.runs import checkpoint
from perla.runs.spec import Run
from perla.runs.store import Folder


class ResumePoint(NamedTuple):
    """The state of a run after an evaluation, or within the interval that follows it."""

    exported: Any
    """The states of all seeds as NumPy arrays."""
    evaluation: int
    """The number of the evaluation."""
    step: int
    """The environment steps that every seed has made."""
    lines: int
    """The lines of `metrics.jsonl`."""
    seconds: float
    """Seconds spent so far, without compilation."""
    compile_seconds: float
    """Seconds spent on compilation."""
    unusable: tuple[Path, ...] = ()
    """Newer checkpoints that could not be used."""


def save(
    folder: Folder, run: Run, point: ResumePoint, *, keep: int | None, unusable: Sequence[Path] = ()
) -> None:
    """Write `point`, and then remove `unusable` checkpoints and old ones; `keep` is the number of
    those kept, None for all.

    The metrics up to its evaluation must be durable.
    """
    meta = checkpoint.Meta(
        run=run.identity,
        evaluation=point.evaluation,
        step=point.step,
        metrics_lines=point.lines,
        metrics_digest=folder.digest,
        wall_seconds=point.seconds,
        compile_seconds=point.compile_seconds,
    )
    path = checkpoint.path_of(folder.checkpoints, point.step)
    checkpoint.save(path, point.exported, meta)
    checkpoint.remove(each for each in unusable if each != path)
    checkpoint.prune(folder.checkpoints, keep)


def load_newest(
    folder: Folder,
    run: Run,
    template: Any,
    say: Callable[[str], None],
    *,
    doing: str = "resuming from",
    with_metrics: bool = True,
) -> ResumePoint | None:
    """The newest usable checkpoint of `run` in `folder`, also from before it was extended; None if
    there is none yet.

    `template` holds the shapes and types of its arrays. A checkpoint is usable if it is whole and,
    unless `with_metrics` is false, `metrics.jsonl` begins with the lines that it had then. `say`
    reports those that are not, and evaluations that follow the one that is; `doing` says what is
    done with it. Raises the newest one's `UserError`, with the remedy, if none is usable.
    """
    errors: dict[Path, UserError] = {}
    identities = {stage.identity for stage in run.stages()}
    for path in checkpoint.newest_first(folder.checkpoints):
        try:
            exported, meta = checkpoint.load(path, template)
            if meta.run not in identities:
                raise UserError(
                    f"{path}: checkpoint of another configuration than "
                    f"{folder.path / 'config.json'}"
                )
            if with_metrics:
                folder.check_metrics(meta.metrics_lines, meta.metrics_digest, path.name)
        except UserError as error:
            errors[path] = error
            continue
        for damage in errors.values():
            say(f"{damage}; {doing} {path.name}")
        if rest := folder.describe_rest(meta.metrics_lines, meta.evaluation):
            say(f"{folder.metrics}: {rest}; {doing} {path.name}")
        return ResumePoint(
            exported,
            meta.evaluation,
            meta.step,
            meta.metrics_lines,
            meta.wall_seconds,
            meta.compile_seconds,
            tuple(errors),
        )
    if errors:
        newest, again = next(iter(errors.values())), resume_command(folder.path)
        raise UserError(
            f"{newest}; no checkpoint of the run is usable: restore its files, or remove "
            f"{folder.checkpoints} and `{again}` starts it again"
        )
    return None


def check_finished(folder: Folder, run: Run, say: Callable[[str], None]) -> None:
    """Raise `UserError` if `metrics.jsonl` of a finished run is not what its newest readable
    checkpoint says. `say` reports damaged checkpoints."""
    for path in checkpoint.newest_first(folder.checkpoints):
        try:
            meta = checkpoint.load_meta(path)
        except UserError as error:
            say(str(error))
            continue
        folder.check_metrics(meta.metrics_lines, meta.metrics_digest, path.name)
        rest = folder.describe_rest(meta.metrics_lines, meta.evaluation)
        if rest and meta.step == run.steps:
            raise UserError(f"{folder.metrics}: {rest}, and {path.name} is the last checkpoint")
        return
