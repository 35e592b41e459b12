"""Executor of a Ray cluster, or of a Ray on this machine.

Ray schedules tasks and reports failures. A task runs as a worker process of its node, as on one
machine, in a temporary folder; the files of the run are streamed to this machine, so that no shared
file system is needed. A retry starts from the files that have arrived here. Tasks are therefore
submitted again rather than retried by Ray, which would start from the files of the first attempt.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import stat
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeAlias

from perla import machine
from perla.envs.bridges.optional import import_optional
from perla.errors import UserError
from perla.files import (
    check_run_folder,
    explained,
    is_temporary,
    make_below,
    read_regular,
    remove_temporaries,
    write_atomic,
)
from perla.runs.store import FolderBusy
from perla.suites.executors import Event, Stop, Task, never
from perla.suites.local import PROGRAM, log_of, start
from perla.suites.processes import BUSY, FINAL, POLL_SECONDS, limits

FORWARDED = ("PERLA_", "JAX_", "XLA_")
"""Prefixes of the environment variables that a run's results or speed may depend on."""
CONNECT_SECONDS = 5.0
"""Timeout of the connection to a cluster. Ray's own is ten minutes."""


class Started(NamedTuple):
    """An attempt has started."""

    node: str


class Files(NamedTuple):
    """Changes in a run's folder."""

    data: dict[str, bytes]
    """Contents by name, in the order in which they must be written."""
    gone: Sequence[str] = ()
    """Names of removed files."""


class Ended(NamedTuple):
    """An attempt has ended."""

    code: int | None
    """The worker's exit status; None if the node or Ray's worker was lost."""
    reason: str = ""
    log: bytes = b""
    """The worker's standard error."""


Message: TypeAlias = Started | Files | Ended
"""A message of an attempt, in this order: one `Started`, any number of `Files`, one `Ended`."""


class Ray:
    """Runs tasks on Ray; each task has `cpus` processors and `gpus` accelerators of a node.

    `address` is that of the cluster, by default `$RAY_ADDRESS`. Without either, Ray is started on
    this machine and stopped at the end. An existing connection of this program to Ray is reused. If
    no node has the resources of a task, Ray waits for one.

    A task whose worker or node dies is retried up to `retries` times, on any node, from the newest
    checkpoint that has arrived here. Exceptions and mistakes are final. A task is stopped once
    `stop` is true for it, with the files that have arrived here.

    Raises `UserError` if Ray is not installed or the resources of a task are impossible.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: int = 1,
        gpus: float = 0,
        retries: int = 3,
        stop: Stop = never,
    ) -> None:
        if cpus < 1:
            raise UserError(f"cpus = {cpus}: a cell needs at least one")
        if gpus < 0 or (gpus > 1 and gpus % 1):
            raise UserError(f"gpus = {gpus:g}: expected a fraction of one, or a whole number")
        import_optional("ray")
        self.address, self.cpus, self.gpus = address, cpus, gpus
        self.retries, self.stop = retries, stop

    def carry_out(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """Carry out `tasks`; closing the generator stops them at once, resumable from the newest
        checkpoints that have arrived here.

        Raises `UserError` if no cluster answers at the address.
        """
        with self._connected() as ray, ExitStack() as locks:
            remote = ray.remote(attempt).options(
                num_cpus=self.cpus, num_gpus=self.gpus, num_returns="streaming", max_retries=0
            )
            shared = PROGRAM, self._environment(), machine.versions()

            def submit(task: Task) -> Any:
                return remote.remote(task, contents(task.folder), *shared)

            running: dict[Any, RemoteTask] = {}
            try:
                for task in tasks:
                    try:
                        locks.enter_context(locked(task.folder))
                        running[submit(task)] = RemoteTask(task)
                    except FolderBusy as error:
                        yield Event(task, "skipped", str(error))
                    except UserError as error:
                        yield Event(task, "failed", str(error))
                while running:
                    (stream,), _ = ray.wait(list(running))
                    remote_task = running[stream]
                    try:
                        event = remote_task.receive(next_message(ray, stream), self.retries)
                        if event is not None and event.kind == "retried":
                            running[submit(remote_task.task)] = remote_task
                        if event is None and not remote_task.stopping:
                            remote_task.stopping = self.stop(remote_task.task)
                            if remote_task.stopping:
                                ray.cancel(stream)
                    except UserError as error:
                        ray.cancel(stream)
                        event = Event(remote_task.task, "failed", str(error))
                    if event is not None:
                        if event.kind != "started":
                            del running[stream]
                        yield event
            finally:
                for stream in running:
                    ray.cancel(stream)
                for stream in running:
                    while not isinstance(next_message(ray, stream), Ended):
                        pass

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Connect Ray to the cluster, without its own output, as events report everything."""
        ray = import_optional("ray")
        if ray.is_initialized():
            yield ray
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
        shares = {} if address != "local" else self._this_machine()
        check_address(address)
        termination = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **shares,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"no Ray at {address}: {first_sentence(error)}") from None
        if threading.current_thread() is threading.main_thread():
            # Ray's own handler prints a page and aborts.
            signal.signal(signal.SIGTERM, termination or signal.SIG_DFL)
        worker = ray._private.worker
        worker._worker_logs_enabled = False  # Ray prints a page when a node dies otherwise.
        try:
            yield ray
        finally:
            ray.shutdown()
            worker._worker_logs_enabled = True

    def _this_machine(self) -> dict[str, int]:
        """Return the resources of a local Ray. Raises `UserError` if they suffice for no task."""
        cores, gpus = machine.cores(), len(machine.accelerators())
        if self.cpus > cores:
            raise UserError(f"cpus = {self.cpus}: this machine has {cores}")
        if self.gpus > gpus:
            raise UserError(f"gpus = {self.gpus:g}: JAX, as installed here, can use {gpus}")
        return {"num_cpus": cores, "num_gpus": gpus}

    def _environment(self) -> dict[str, str]:
        """Return the environment variables that are added to those of the node."""
        added = {name: text for name, text in os.environ.items() if name.startswith(FORWARDED)}
        return limits(self.cpus, float(self.gpus), added)


@dataclass
class RemoteTask:
    """The state, on this machine, of a task that has not ended."""

    task: Task
    node: str = "no node"
    """The node of the last attempt."""
    tries: int = 0
    """Number of retries."""
    stopping: bool = False
    """True once its attempt is cancelled on purpose."""

    def receive(self, message: Message, retries: int) -> Event | None:
        """Write the content of a message to disk, and return the event that it stands for.

        Raises `UserError` if a file cannot be written.
        """
        log = log_of(self.task.folder)
        match message:
            case Started(node):
                self.node = node
                return Event(self.task, "started", f"on {node}{self._start(', from')}")
            case Files():
                apply(self.task.folder, message)
                return None
            case Ended(0):
                with explained(log):
                    log.unlink(missing_ok=True)
                return Event(self.task, "finished")
            case Ended() if self.stopping:
                return Event(self.task, "stopped")
            case Ended(code, reason, errors):
                if errors:
                    write_atomic(log, errors)
                if code == BUSY:
                    return Event(self.task, "skipped", reason)
                if code in FINAL:
                    return Event(self.task, "failed", reason)
                if self.tries == retries:
                    return Event(self.task, "failed", f"{self.node}: {reason}")
                self.tries += 1
                start = self._start("goes on from") or "begins again"
                return Event(self.task, "retried", f"{self.node}: {reason}; {start}")

    def _start(self, words: str) -> str:
        """Return `words` and the newest checkpoint's step; empty if there is no checkpoint."""
        names = (self.task.folder / "checkpoints").glob("step_*.safetensors")
        steps = [int(name.stem.removeprefix("step_")) for name in names]
        return f"{words} step {max(steps):,}" if steps else ""


def attempt(
    task: Task,
    files: dict[str, bytes],
    program: Sequence[str],
    environment: dict[str, str],
    versions: dict[str, str],
) -> Iterator[Message]:
    """Carry out `task` on this node, starting with `files` in its folder; yield messages.

    `program` is what Python runs, and `versions` are those of the machine that submitted the task.
    """
    ray = import_optional("ray")
    identity = ray.get_runtime_context().get_node_id()
    node = f"node {ray.util.get_node_ip_address()} ({identity[:6]})"
    yield Started(node)
    for name, version in machine.versions().items():
        if version != versions.get(name):
            text = f"{name} is {version} there and {versions.get(name)} on the submitting machine"
            yield Ended(2, f"{node}: {text}")
            return
    with TemporaryDirectory(prefix="perla-") as scratch:
        folder, log = Path(scratch, "run"), Path(scratch, "log")
        folder.mkdir()
        apply(folder, Files(files))
        mirror = Mirror(folder)
        process = start(Task(task.run, folder), log, environment, program)
        try:
            while process.popen.poll() is None:
                time.sleep(POLL_SECONDS)
                if mirror.checkpointed:
                    yield mirror.changes(finished=False)
            yield mirror.changes(finished=process.popen.returncode == 0)
            reason = process.reason().replace(str(folder), str(task.folder))
            ended = Ended(process.popen.returncode, reason, log.read_bytes())
        finally:
            process.popen.kill()
            process.popen.wait()
    yield ended  # After the cleanup, as the receiver may disconnect.


class Mirror:
    """Changes of a run's folder on a node since the last report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent = stamps(folder)

    @property
    def checkpointed(self) -> bool:
        """True if there is a checkpoint that has not been sent."""
        new = stamps(self.folder).items() - self.sent.items()
        return any(is_checkpoint(name) for name, _ in new)

    def changes(self, *, finished: bool) -> Files:
        """Return the changes since the last call, the summary only if the run is `finished`."""
        now = stamps(self.folder)
        if not finished:
            now.pop("summary.json", None)
        changed = [name for name, stamp in now.items() if stamp != self.sent.get(name)]
        gone = sorted(self.sent.keys() - now.keys())
        self.sent = now
        return Files(contents(self.folder, changed), gone)


def stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return the files in a run's folder, each with a stamp that changes with its content.

    Checkpoints are listed first, so that the files which precede them are found as well.
    """
    found = {}
    for path in [*folder.glob("checkpoints/*"), *folder.glob("*")]:
        with suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and not is_temporary(path):
                stamp = status.st_ino, status.st_mtime_ns, status.st_size
                found[path.relative_to(folder).as_posix()] = stamp
    return found


def contents(folder: Path, names: Sequence[str] | None = None) -> dict[str, bytes]:
    """Read the files `names` (None: all) of a run's folder, in the order in which they must be
    written: metrics before the checkpoints that follow them, and the summary last.

    A file that has just been removed is left out. Raises `UserError` if one cannot be read.
    """
    found = {}
    for name in sorted(stamps(folder) if names is None else names, key=order):
        with explained(folder / name), suppress(FileNotFoundError):
            found[name] = read_regular(folder / name)
    return found


def order(name: str) -> tuple[bool, bool, bool, str]:
    """Sort key of the files of a run's folder."""
    return name == "summary.json", is_checkpoint(name), name != "config.json", name


def is_checkpoint(name: str) -> bool:
    """Return True if the file `name` of a run's folder is a checkpoint."""
    return name.startswith("checkpoints/")


def apply(folder: Path, files: Files) -> None:
    """Write and remove files. The folder is resumable at every moment."""
    for name, data in files.data.items():
        parent = make_below(folder, Path(name).parent)
        write_atomic(parent / Path(name).name, data)
    for name in files.gone:
        with explained(folder / name):
            (folder / name).unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder, which is created if it does not exist.

    Raises `UserError` if another process has locked it, if it holds links, pipes or devices, or if
    the operating system refuses.
    """
    from perla.runs.store import Folder

    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    check_run_folder(folder)
    lock = Folder(folder)
    lock.lock()
    try:
        for directory in (folder, folder / "checkpoints"):
            if directory.is_dir():
                remove_temporaries(directory)
        yield
    finally:
        lock.unlock()
        with suppress(OSError):
            folder.rmdir()  # Only if it is still empty.


def check_address(address: str) -> None:
    """Raise `UserError` if `address` is that of Ray's client, or if its port does not answer."""
    if address.startswith("ray://"):
        raise UserError(
            f"{address}: Ray's client cannot stream files; run this on a machine of the "
            "cluster, with the cluster's own address or `auto`"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray at {address}: {first_sentence(error)}") from None


def next_message(ray: Any, stream: Any) -> Message:
    """Return the next message of an attempt."""
    try:
        return ray.get(next(stream))
    except StopIteration:
        return Ended(None, "ended without a result")
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        name = "" if isinstance(cause, UserError) else f"{type(cause).__name__}: "
        return Ended(1, name + str(cause).strip().split("\n")[-1], str(error).encode())
    except ray.exceptions.RayError as error:
        return Ended(None, first_sentence(error))


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error's message."""
    words = re.split(r"[.:]?\s*\n|\.\s", f"{error}\n")[0].strip()
    return words[:1].lower() + words[1:] or type(error).__name__
