"""Interface between a suite and the machines that carry it out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from perla.runs.spec import Run


class Task(NamedTuple):
    """A run and its folder."""

    run: Run
    folder: Path


Stop = Callable[[Task], bool]
"""Returns True once a running task is to be stopped, resumable. It is called often."""


def never(task: Task) -> bool:
    """Stop no task."""
    return False


class Event(NamedTuple):
    """A change in the state of a task."""

    task: Task
    kind: Literal["started", "finished", "failed", "retried", "skipped", "stopped"]
    """Skipped is a task that another process carries out; stopped is one that was to be stopped."""
    text: str = ""
    """The reason of a failure, a retry or a skip."""


@runtime_checkable
class Executor(Protocol):
    """Carries out tasks.

    Each task ends with a finished run folder, or with a "failed", a "skipped" or a "stopped"
    event, and no failure stops the others.
    An unfinished run in a task's folder continues from its newest checkpoint. Closing the generator
    of events stops the work, resumable.
    """

    def carry_out(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """Carry out `tasks`, started in order as there is room, and yield events."""
        ...
