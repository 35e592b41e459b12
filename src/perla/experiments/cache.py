"""Jobs of a calculation: each is computed once, in worker processes, and its result is kept."""

from __future__ import annotations

import hashlib
import json
import pickle
import select
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from perla import machine
from perla.errors import UserError
from perla.experiments.experiment import Job
from perla.files import explained, read_regular, write_atomic
from perla.runs.store import dump
from perla.suites.processes import failure_reason, max_processes, run_tasks, start_python
from perla.suites.suite import slug


def cached(
    jobs: Sequence[Job],
    folder: Path,
    *,
    processes: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Any]:
    """Return the results of `jobs`, in their order, as JSON holds them.

    A result is read from `folder` where an earlier call has written it. Otherwise it is computed
    and written there, the longest jobs first. `say` is called with the progress. Jobs with the same
    name and dependencies are one. Raises `UserError` for a file that holds no result, for a
    `UserError` of a job, and where a process dies.
    """
    paths = [folder / file_name(job) for job in jobs]
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    by_path = dict(zip(paths, jobs, strict=True))
    missing = [(path, job) for path, job in by_path.items() if not path.exists()]
    # The longest first, so that the processes end at about the same time.
    missing.sort(key=lambda each: each[1].weight, reverse=True)
    ahead, behind = sum(job.weight for _, job in missing), 0.0
    started = time.monotonic()
    # Closed at once wherever an interruption falls, so that no process goes on.
    with closing(_compute([job for _, job in missing], processes)) as results:
        for done, (index, result) in enumerate(results, start=1):
            path, job = missing[index]
            with explained(path):
                facts = {"name": job.name, "depends": job.depends, "found": result}
                write_atomic(path, dump(facts))
            ahead, behind = ahead - job.weight, behind + job.weight
            minutes = (time.monotonic() - started) / behind * ahead / 60
            say(f"{job.name}: {done} of {len(missing)}, {minutes:.0f} min left")
    return [_read(path) for path in paths]


def file_name(job: Job) -> str:
    """The name of the file that holds the result of a job."""
    digest = hashlib.sha256(json.dumps([job.name, job.depends]).encode()).hexdigest()
    return f"{slug(job.name)}-{digest[:8]}.json"


def _read(path: Path) -> Any:
    with explained(path):
        try:
            return json.loads(read_regular(path))["found"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: holds no result; delete it to compute it anew") from None


def _compute(jobs: Sequence[Job], processes: int | None) -> Generator[tuple[int, Any], None, None]:
    """Yield (position, result) of each job as it ends.

    Processes rather than threads, as two threads that compute at the same time can deadlock XLA's
    thread pool. One process, this one, where there is an accelerator: each would take all of its
    memory.
    """
    count = min(len(jobs), processes or (1 if machine.accelerators() else max_processes()))
    if count <= 1:
        for index, job in enumerate(jobs):
            yield index, job.compute()
        return
    pool = [_Calculator(cores) for cores in machine.shares(count)]

    def start(job: Job, slot: int) -> _Calculator:
        pool[slot].compute(job)
        return pool[slot]

    try:
        with closing(run_tasks(jobs, count, start)) as events:
            for event in events:
                if event.kind == "finished":
                    yield event.position, pool[event.slot].answer["result"]
                elif event.kind == "failed":
                    raise pool[event.slot].error(event.text)
    finally:
        for calculator in pool:
            calculator.stop()
        for calculator in pool:
            calculator.wait()


class _Calculator:
    """A process that computes one job after another, on its share of the processor cores."""

    def __init__(self, cores: Sequence[int]) -> None:
        self.log = TemporaryFile()  # noqa: SIM115 - closed by `wait`
        self.popen = start_python(
            ["-m", "perla.experiments.worker", ",".join(map(str, cores))],
            {"PERLA_CORES": str(len(cores))},
            errors=self.log,
            output=subprocess.PIPE,
        )
        self.answer: dict[str, Any] = {}
        self._send(sys.path)

    def compute(self, job: Job) -> None:
        """Start to compute a job."""
        self.answer = {}
        self._send(pickle.dumps(job.compute))

    def poll(self) -> int | None:
        """0 once there is a result, 2 after a `UserError`; the exit status of a dead process."""
        assert self.popen.stdout is not None
        if not self.answer and select.select([self.popen.stdout], [], [], 0)[0]:
            line = self.popen.stdout.readline()
            if not line:
                return self.popen.wait()
            self.answer = json.loads(line)
        if not self.answer:
            return None
        return 2 if "error" in self.answer else 0

    def reason(self) -> str:
        """The message of the `UserError`, or else how the process ended."""
        if self.answer:
            return str(self.answer["error"])
        return failure_reason(self.popen.returncode, self._errors())

    def error(self, reason: str) -> Exception:
        """The exception for a job that failed."""
        if self.answer:
            return UserError(reason)
        if self.popen.returncode > 0:
            return RuntimeError(self._errors().decode(errors="replace"))
        return UserError(
            f"a process died ({reason}), perhaps out of memory; the same command continues, and "
            "with --processes 1 it needs less memory"
        )

    def stop(self) -> None:
        """End the process."""
        self.popen.terminate()

    def wait(self) -> None:
        """Wait until the process has ended, and close its files."""
        self.popen.wait()
        with suppress(BrokenPipeError):
            self.popen.communicate()
        self.log.close()

    def _errors(self) -> bytes:
        self.log.seek(0)
        return self.log.read()

    def _send(self, message: Any) -> None:
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError):  # A process that has died is seen by `poll`.
            pickle.dump(message, self.popen.stdin)
            self.popen.stdin.flush()
