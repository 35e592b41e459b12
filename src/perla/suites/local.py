"""Tasks on this machine, in as many processes as it has room for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO

import msgspec

from perla.runs import machine
from perla.suites.executors import Event, Task

MEMORY = 2 * 2**30
"""Bytes of main memory that a process may need."""
POLL_SECONDS = 0.1


@dataclass
class Process:
    """A task at work."""

    task: Task
    popen: subprocess.Popen[bytes]
    errors: IO[bytes]
    slot: int

    def reason(self) -> str:
        """Why it ended, from its own words or its exit status."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        code = self.popen.returncode
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return lines[-1] if lines else f"exit status {code}"


class Local:
    """One process for each of several tasks at a time, each with its share of the cores.

    A process that dies (out of memory, killed) is tried again up to `retries` times and goes on
    from its last checkpoint; a mistake that it names itself is final.
    """

    def __init__(self, processes: int | None = None, *, retries: int = 2) -> None:
        self.processes, self.retries = processes, retries

    def carry_out(self, tasks: Sequence[Task]) -> Iterator[Event]:
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
                    working.append(start(task, free.pop(), count))
                    yield Event(task, "started")
                ended = [process for process in working if process.popen.poll() is not None]
                for process in ended:
                    working.remove(process)
                    free.append(process.slot)
                    task, code = process.task, process.popen.returncode
                    if code == 0:
                        yield Event(task, "finished")
                    elif code == 2 or tries[task.folder] == self.retries:
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
    gpus = machine.accelerators()
    return gpus or max(1, min(machine.cores(), machine.memory() // MEMORY))


def start(task: Task, slot: int, slots: int) -> Process:
    """Start a task in the `slot`-th of `slots` equal shares of the machine."""
    environment = dict(os.environ)
    if machine.accelerators():
        environment["CUDA_VISIBLE_DEVICES"] = str(slot % machine.accelerators())
    else:
        environment["PERLA_CORES"] = str(max(1, machine.cores() // slots))
    errors = TemporaryFile()
    task.folder.parent.mkdir(parents=True, exist_ok=True)
    popen = subprocess.Popen(
        [sys.executable, "-m", "perla.suites.worker", str(task.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env=environment,
        start_new_session=True,  # Ctrl-C is for us to hear, and to hand on.
    )
    assert popen.stdin is not None
    popen.stdin.write(msgspec.json.encode(task.run) + b"\n")
    popen.stdin.flush()
    return Process(task, popen, errors, slot)
