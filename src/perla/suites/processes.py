"""Worker processes: tasks run side by side, each on a share of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import IO, Literal, NamedTuple, Protocol, TypeVar

from perla import machine

T = TypeVar("T")

MEMORY = 2 * 2**30
"""Bytes of main memory that a process may need."""
POLL_SECONDS = 0.1
BUSY = 75
"""Exit status of a worker whose run another process carries out (EX_TEMPFAIL)."""
FINAL = (1, 2)
"""Exit statuses of an exception and of a `UserError`: a retry would fail in the same way."""


class Worker(Protocol):
    """A process at work on one task."""

    def poll(self) -> int | None:
        """The exit status of the task, 0 on success; None while it runs."""
        ...

    def reason(self) -> str:
        """Why the task failed, in one line."""
        ...

    def stop(self) -> None:
        """Ask the process to end."""
        ...

    def wait(self) -> None:
        """Wait until the process has ended."""
        ...


class TaskEvent(NamedTuple):
    """A change in the state of one of the tasks given to `run_tasks`."""

    position: int
    """The position of the task."""
    kind: Literal["started", "finished", "failed", "retried", "skipped", "stopped"]
    slot: int
    text: str = ""
    """The reason of a failure or a retry."""


def run_tasks(
    tasks: Sequence[T],
    count: int,
    start: Callable[[T, int], Worker],
    *,
    retries: int = 0,
    stop: Callable[[T], bool] = lambda task: False,
) -> Generator[TaskEvent, None, None]:
    """Run `tasks` in order, `count` at a time; `start(task, slot)` puts a worker on one.

    A task whose process dies (killed, out of memory) is started again up to `retries` times. Errors
    with a status in `FINAL` are not retried, and stop no other task. A task is skipped that another
    process carries out (`BUSY`), and stopped once `stop(task)` is true. Closing the generator (on
    Ctrl-C, for example) stops the workers and waits for them.
    """
    waiting = deque(enumerate(tasks))
    tries = [0] * len(tasks)
    free = list(range(count))
    running: list[tuple[int, int, Worker]] = []
    stopping: set[int] = set()
    try:
        while waiting or running:
            while waiting and free:
                index, task = waiting.popleft()
                slot = free.pop()
                worker = start(task, slot)
                running.append((index, slot, worker))
                yield TaskEvent(index, "started", slot)
            for index, _, worker in running:
                if index not in stopping and stop(tasks[index]):
                    stopping.add(index)
                    worker.stop()
            ended = [each for each in running if each[2].poll() is not None]
            for entry in ended:
                index, slot, worker = entry
                running.remove(entry)
                free.append(slot)
                code = worker.poll()
                if code == 0:
                    yield TaskEvent(index, "finished", slot)
                elif index in stopping:
                    yield TaskEvent(index, "stopped", slot)
                elif code == BUSY:
                    yield TaskEvent(index, "skipped", slot, worker.reason())
                elif code in FINAL or tries[index] == retries:
                    yield TaskEvent(index, "failed", slot, worker.reason())
                else:
                    tries[index] += 1
                    waiting.appendleft((index, tasks[index]))
                    yield TaskEvent(index, "retried", slot, worker.reason())
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        for _, _, worker in running:
            worker.stop()
        for _, _, worker in running:
            worker.wait()


def start_python(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    errors: IO[bytes],
    output: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start this Python with `arguments`, and with `environment` added to the inherited one.

    Standard error goes to the file `errors`. Standard input is a pipe: a worker ends when it is
    closed, so that no worker outlives its parent.
    """
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=errors,
        env=dict(os.environ) | dict(environment),
        start_new_session=True,  # Ctrl-C reaches the parent alone, which stops its workers.
    )


def failure_reason(code: int, log: bytes) -> str:
    """The reason of a failure in one line: the signal and the last line of the log, or else the
    exit status."""
    lines = log.decode(errors="replace").strip().splitlines()
    words = [f"killed by {signal.Signals(-code).name}"] if code < 0 else []
    return ": ".join(words + lines[-1:]) or f"exit status {code}"


def limits(cpus: int, gpus: float, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of a process with `cpus` processors and `gpus` accelerators (a share of one, or
    whole ones), added to those that are `given`, which count first."""
    added = {} if given is None else dict(given)
    added["PERLA_CORES"] = str(cpus)
    if gpus == 0:
        added.setdefault("JAX_PLATFORMS", "cpu")
    elif gpus < 1:
        added.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 * gpus:.3f}")
    return added


def max_processes() -> int:
    """The number of processes that this machine has accelerators, or cores and memory, for."""
    gpus = len(machine.accelerators())
    return gpus or max(1, min(machine.cores(), machine.memory() // MEMORY))


def share(slot: int, slots: int) -> dict[str, str]:
    """The environment variables of the `slot`-th of `slots` equal shares of the machine."""
    if gpus := machine.accelerators():
        return {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]}
    return {"PERLA_CORES": str(max(1, machine.cores() // slots))}
