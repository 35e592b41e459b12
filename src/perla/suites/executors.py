"""The seam between a suite and the machines that carry it out."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from perla.runs.spec import Run


class Task(NamedTuple):
    """A run, and the folder that shall hold it."""

    run: Run
    folder: Path


class Event(NamedTuple):
    """What happened to a task."""

    task: Task
    kind: Literal["started", "finished", "failed", "retried"]
    text: str = ""
    """Why it failed, or was tried again."""


@runtime_checkable
class Executor(Protocol):
    """Who carries tasks out.

    Each ends in a finished run folder or in an event that says why not; none stops the others.
    A task whose folder holds an unfinished run goes on from its newest checkpoint. Whoever stops
    reading events stops the work, so that it can be gone on with.
    """

    def carry_out(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """Carry out `tasks`, in their order as far as there is room, and tell what happens."""
        ...
