"""Executor of a SLURM cluster, through submitit: every task is a job of one array.

A job runs a worker process on its node, as on one machine, and writes into the suite's folder,
which the nodes must share. A job that reaches its time limit or is preempted is submitted again by
submitit and continues from its newest checkpoint. submitit's own pickles of results are never read:
a job's outcome is a JSON file beside the run's folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from perla.envs.bridges.optional import import_optional
from perla.errors import UserError
from perla.files import decode, explained, read_regular, write_atomic
from perla.suites import local
from perla.suites.executors import Event, Task
from perla.suites.local import attempt_log, log_of, start
from perla.suites.processes import BUSY, limits

POLL_SECONDS = 1.0
HOURS = 24.0
"""Time limit of a job; a longer run is submitted again."""
RESUBMISSIONS = 100
"""Number of times that a job is submitted again after its time limit."""


class Status(msgspec.Struct):
    """The outcome of a job."""

    code: int
    """The worker's exit status."""
    reason: str
    """Why it failed; empty if it did not."""


@dataclass
class Attempt:
    """A job: carry out a task on this node, or continue it. submitit pickles it."""

    task: Task
    program: Sequence[str]
    environment: Mapping[str, str]

    def __call__(self) -> None:
        """Run a worker process and write the outcome."""
        folder, log = self.task.folder, attempt_log(self.task.folder)
        process = start(self.task, log, self.environment, self.program)
        process.wait()
        code = process.popen.returncode
        status = Status(code, process.reason() if code else "")
        os.replace(log, log_of(folder))
        write_atomic(status_of(folder), msgspec.json.encode(status))

    def checkpoint(self) -> Any:
        """The job that continues this one, after a time limit or a preemption."""
        return import_optional("submitit", extra="slurm").helpers.DelayedSubmission(self)


@dataclass
class Slurm:
    """Runs tasks as the jobs of one array, each with `cpus` processors and `gpus` accelerators.

    `parameters` are options of sbatch without their dashes, such as `partition`; `processes` bounds
    the jobs that run at a time. `cluster` is submitit's: `local` and `debug` need no SLURM. Raises
    `UserError` if submitit is not installed or the number of accelerators is impossible.
    """

    cpus: int = 1
    gpus: float = 0.0
    hours: float = HOURS
    processes: int | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    cluster: str = "slurm"

    def __post_init__(self) -> None:
        if self.gpus % 1:
            raise UserError(f"gpus = {self.gpus:g}: SLURM gives whole ones to a job")
        import_optional("submitit", extra="slurm")

    def carry_out(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """Carry out `tasks`; closing the generator cancels their jobs, resumable.

        Raises `UserError` if there is no SLURM on this machine.
        """
        if not tasks:
            return
        absolute = [Task(task.run, task.folder.absolute()) for task in tasks]
        for task in absolute:
            status_of(task.folder).unlink(missing_ok=True)
        environment = limits(self.cpus, self.gpus)
        attempts = [Attempt(task, tuple(local.PROGRAM), environment) for task in absolute]
        jobs = self._submit(attempts)
        waiting = dict(zip(jobs, tasks, strict=True))
        queued = dict.fromkeys(jobs)
        try:
            while waiting:
                for job in [job for job in queued if is_started(job)]:
                    del queued[job]
                    yield Event(waiting[job], "started", f"job {job.job_id}")
                for job in [job for job in waiting if job.done()]:
                    if job in queued:
                        del queued[job]
                        yield Event(waiting[job], "started", f"job {job.job_id}")
                    yield outcome(waiting.pop(job), job)
                if waiting:
                    time.sleep(POLL_SECONDS)
        finally:
            for job in waiting:
                job.cancel(check=False)

    def _submit(self, attempts: Sequence[Attempt]) -> list[Any]:
        submitit = import_optional("submitit", extra="slurm")
        folder = attempts[0].task.folder.parents[2] / "slurm"
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            executor = submitit.AutoExecutor(
                folder=folder, cluster=self.cluster, slurm_max_num_timeout=RESUBMISSIONS
            )
            executor.update_parameters(
                name="perla",
                timeout_min=max(1, round(60 * self.hours)),
                cpus_per_task=self.cpus,
                gpus_per_node=int(self.gpus),
                slurm_array_parallelism=self.processes or len(attempts),
                slurm_additional_parameters=dict(self.parameters),
            )
            if self.cluster == "slurm":
                return list(executor.submit_array(attempts))
            return [executor.submit(attempt) for attempt in attempts]
        except (RuntimeError, OSError, submitit.core.utils.FailedJobError) as error:
            words = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"no job was submitted to SLURM: {words}") from None


def is_started(job: Any) -> bool:
    """True if a job runs or has run."""
    return job.state not in ("PENDING", "QUEUED", "UNKNOWN")


def outcome(task: Task, job: Any) -> Event:
    """The event of a job that has ended."""
    path = status_of(task.folder)
    try:
        with explained(path):
            status = decode(read_regular(path), Status, source=path)
            path.unlink()
    except UserError:
        return Event(task, "failed", f"job {job.job_id} ended as {job.state} without an outcome")
    if status.code not in (0, BUSY):
        return Event(task, "failed", status.reason)
    with suppress(OSError):
        log_of(task.folder).unlink()
    return Event(task, "skipped" if status.code == BUSY else "finished", status.reason)


def status_of(folder: Path) -> Path:
    """The file with the outcome of a run folder's job."""
    return folder.with_name(f"{folder.name}.job.json")
