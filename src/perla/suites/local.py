"""Executor of this machine: a suite's runs in worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from perla.files import explained, open_regular, read_regular
from perla.runs.interrupt import SAVING
from perla.suites.executors import Event, Stop, Task, never
from perla.suites.processes import (
    failure_reason,
    max_processes,
    run_tasks,
    share,
    start_python,
)
from perla.suites.worker import SAVE

PROGRAM: Sequence[str] = ("-m", "perla.suites.worker")
"""The arguments of Python in a worker process; the task's folder follows."""


@dataclass
class Process:
    """A worker process and the task that it carries out."""

    popen: subprocess.Popen[bytes]
    log: Path
    """Its standard error."""

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        return self.popen.poll()

    def reason(self) -> str:
        """Why it failed, from its log or its exit status."""
        return failure_reason(self.popen.returncode, read_regular(self.log))

    def stop(self) -> None:
        """Ask it to stop after the present interval, resumable."""
        self.popen.terminate()

    def wait(self) -> None:
        """Wait until it has ended."""
        self.popen.wait()

    def save(self) -> None:
        """Ask it to save a checkpoint and to go on, unless it has ended."""
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError):
            self.popen.stdin.write(SAVE)
            self.popen.stdin.flush()


@contextmanager
def saving(newest: Mapping[int, Process]) -> Iterator[None]:
    """At SIGUSR1 ask the newest process of every slot to save. Outside the main thread, where
    signals cannot be caught, this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def save(*_: object) -> None:
        for process in newest.values():
            process.save()

    previous = signal.signal(SAVING, save)
    try:
        yield
    finally:
        signal.signal(SAVING, previous)


class Local:
    """Runs several tasks at a time, each in a process with an equal share of the cores. At SIGUSR1
    each of them saves a checkpoint.

    A process that dies (out of memory, killed) is retried up to `retries` times, from its last
    checkpoint. Exceptions and mistakes are final. A task is stopped, after its present interval,
    once `stop` is true for it.
    """

    def __init__(
        self, processes: int | None = None, *, retries: int = 2, stop: Stop = never
    ) -> None:
        self.processes, self.retries, self.stop = processes, retries, stop

    def carry_out(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """Carry out `tasks`; closing the generator stops them after their present intervals."""
        count = min(len(tasks), self.processes or max_processes())

        newest: dict[int, Process] = {}

        def begin(task: Task, slot: int) -> Process:
            newest[slot] = start(task, attempt_log(task.folder), share(slot, count), PROGRAM)
            return newest[slot]

        try:
            running = run_tasks(tasks, count, begin, retries=self.retries, stop=self.stop)
            with saving(newest), closing(running) as events:
                for event in events:
                    task = tasks[event.position]
                    if event.kind == "failed":
                        os.replace(attempt_log(task.folder), log_of(task.folder))
                    elif event.kind in ("finished", "stopped"):
                        log_of(task.folder).unlink(missing_ok=True)
                    yield Event(task, event.kind, event.text)
        finally:
            for task in tasks:
                attempt_log(task.folder).unlink(missing_ok=True)


def start(task: Task, log: Path, environment: Mapping[str, str], program: Sequence[str]) -> Process:
    """Start a worker process of `task`, which writes its errors to `log`.

    `environment` is added to the inherited one. Raises `UserError` if the log cannot be written.
    """
    with explained(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with open_regular(log, "wb") as errors:
            popen = start_python([*program, str(task.folder)], environment, errors=errors)
    assert popen.stdin is not None
    popen.stdin.write(msgspec.json.encode(task.run) + b"\n")
    popen.stdin.flush()
    return Process(popen, log)


def log_of(folder: Path) -> Path:
    """The file with the standard error of a worker that failed in a run folder."""
    return folder.with_name(f"{folder.name}.log")


def attempt_log(folder: Path) -> Path:
    """The file with the standard error of this process's worker in a run folder, while it works:
    another process may try the same run."""
    return folder.with_name(f".{folder.name}.{os.getpid()}.log")
