"""Tasks on this machine, in as many processes as it has room for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from perla import machine
from perla.files import explained, open_regular, read_regular
from perla.suites.executors import FINAL, Event, Task

MEMORY = 2 * 2**30
"""Bytes of main memory that a process may need."""
POLL_SECONDS = 0.1
PROGRAM: Sequence[str] = ("-m", "perla.suites.worker")
"""What Python runs in a process, followed by the task's folder."""


@dataclass
class Process:
    """A task at work."""

    task: Task
    popen: subprocess.Popen[bytes]
    log: Path
    """What it says on standard error."""
    slot: int

    def reason(self) -> str:
        """Why it ended, from its own words or its exit status."""
        lines = read_regular(self.log).decode(errors="replace").strip().splitlines()
        code = self.popen.returncode
        words = [f"killed by {signal.Signals(-code).name}"] if code < 0 else []
        return ": ".join(words + lines[-1:]) or f"exit status {code}"


class Local:
    """One process for each of several tasks at a time, each with its share of the cores.

    A process that dies (out of memory, killed) is tried again up to `retries` times and goes on
    from its last checkpoint; exceptions and mistakes are final.
    """

    def __init__(self, processes: int | None = None, *, retries: int = 2) -> None:
        self.processes, self.retries = processes, retries

    def carry_out(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """Carry out `tasks`; closing the iterator stops them after their present intervals."""
        count = min(len(tasks), self.processes or room())
        waiting = deque(tasks)
        tries = dict.fromkeys((task.folder for task in tasks), 0)
        free = list(range(count))
        working: list[Process] = []
        try:
            while waiting or working:
                while waiting and free:
                    task = waiting.popleft()
                    slot = free.pop()
                    log, environment = log_of(task.folder), share(slot, count)
                    working.append(start(task, log, environment, PROGRAM, slot))
                    yield Event(task, "started")
                ended = [process for process in working if process.popen.poll() is not None]
                for process in ended:
                    working.remove(process)
                    free.append(process.slot)
                    task, code = process.task, process.popen.returncode
                    if code == 0:
                        process.log.unlink()
                        yield Event(task, "finished")
                    elif code in FINAL or tries[task.folder] == self.retries:
                        yield Event(task, "failed", process.reason())
                    else:
                        tries[task.folder] += 1
                        waiting.appendleft(task)
                        yield Event(task, "retried", process.reason())
                if not ended:
                    time.sleep(POLL_SECONDS)
        finally:
            for process in working:
                process.popen.terminate()
            for process in working:
                process.popen.wait()


def room() -> int:
    """How many processes this machine has cores, memory or accelerators for."""
    gpus = len(machine.accelerators())
    return gpus or max(1, min(machine.cores(), machine.memory() // MEMORY))


def share(slot: int, slots: int) -> dict[str, str]:
    """The environment of the `slot`-th of `slots` equal shares of the machine."""
    if gpus := machine.accelerators():
        return {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]}
    return {"PERLA_CORES": str(max(1, machine.cores() // slots))}


def start(
    task: Task, log: Path, environment: Mapping[str, str], program: Sequence[str], slot: int = 0
) -> Process:
    """Start a worker, with `environment` beside what it inherits; its `log` says what is wrong.

    Raises `UserError` if the log cannot be written.
    """
    with explained(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with open_regular(log, "wb") as errors:
            popen = subprocess.Popen(
                [sys.executable, *program, str(task.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=dict(os.environ) | dict(environment),
                start_new_session=True,  # Ctrl-C is for us to hear, and to hand on.
            )
    assert popen.stdin is not None
    popen.stdin.write(msgspec.json.encode(task.run) + b"\n")
    popen.stdin.flush()
    return Process(task, popen, log, slot)


def log_of(folder: Path) -> Path:
    """Where the worker of a run folder says what is wrong."""
    return folder.with_name(f"{folder.name}.log")
