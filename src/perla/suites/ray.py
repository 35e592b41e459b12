"""Tasks on the machines of a Ray cluster, or on this one.

Ray decides what runs where, and tells what has died. Each cell is a worker of its own, as on one
machine, in a folder of its node; its files come here as a stream, so that no file system need be
shared. Whoever tries a cell again, wherever, begins with what has come here. That is why a cell
whose node died is submitted anew: a retry of Ray's own would begin with what the first one began
with, and nobody would be told.
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
from perla.suites.executors import Event, Task
from perla.suites.local import PROGRAM, log_of, start
from perla.suites.processes import FINAL, POLL_SECONDS

HANDED_ON = ("PERLA_", "JAX_", "XLA_")
"""Beginnings of the environment variables that a run's numbers and speed may depend on."""
KNOCK_SECONDS = 5.0
"""How long a cluster may take to answer. Ray itself would wait for ten minutes."""


class Begun(NamedTuple):
    """An attempt runs."""

    node: str


class Files(NamedTuple):
    """What has changed in a run's folder."""

    data: dict[str, bytes]
    """Contents by name, in the order in which they must become durable."""
    gone: Sequence[str] = ()
    """Names of what is no longer there."""


class Ended(NamedTuple):
    """An attempt is over."""

    code: int | None
    """The worker's exit status; None where it was lost with all that it had not sent."""
    reason: str = ""
    log: bytes = b""
    """What the worker said on standard error."""


News: TypeAlias = Begun | Files | Ended
"""What comes from an attempt, in this order: once, as often as it likes, once."""


class Ray:
    """Ray's scheduler; each cell gets `cpus` processors and `gpus` accelerators of some node.

    `address` is that of the cluster. Without one it is `$RAY_ADDRESS`, else Ray is started on this
    machine and stopped in the end. A Ray that the program has connected to already is used as it
    is. Where no node has what a cell asks for, Ray waits for one that has.

    A cell whose worker or node dies is tried again up to `retries` times, wherever there is room,
    from the newest checkpoint that has come here; exceptions and mistakes are final.

    Raises `UserError` if Ray is not installed, or cannot give what a cell asks for.
    """

    def __init__(
        self, address: str | None = None, *, cpus: int = 1, gpus: float = 0, retries: int = 3
    ) -> None:
        if cpus < 1:
            raise UserError(f"cpus = {cpus}: a cell needs one at least")
        if gpus < 0 or (gpus > 1 and gpus % 1):
            raise UserError(f"gpus = {gpus:g}: give a share of one, or whole ones")
        required()
        self.address, self.cpus, self.gpus, self.retries = address, cpus, gpus, retries

    def carry_out(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """Carry out `tasks`; closing the iterator stops them at once, and whoever goes on with
        them begins at the newest checkpoints that have come here.

        Raises `UserError` if no cluster answers at the address.
        """
        with self._connected() as ray, ExitStack() as locks:
            remote = ray.remote(attempt).options(
                num_cpus=self.cpus, num_gpus=self.gpus, num_returns="streaming", max_retries=0
            )
            shared = PROGRAM, self._environment(), machine.versions()

            def submit(task: Task) -> Any:
                return remote.remote(task, contents(task.folder), *shared)

            cells: dict[Any, Cell] = {}
            try:
                for task in tasks:
                    try:
                        locks.enter_context(held(task.folder))
                        cells[submit(task)] = Cell(task)
                    except UserError as error:
                        yield Event(task, "failed", str(error))
                while cells:
                    (stream,), _ = ray.wait(list(cells))
                    cell = cells[stream]
                    try:
                        event = cell.hear(received(ray, stream), self.retries)
                        if event is not None and event.kind == "retried":
                            cells[submit(cell.task)] = cell
                    except UserError as error:
                        ray.cancel(stream)
                        event = Event(cell.task, "failed", str(error))
                    if event is not None:
                        if event.kind != "started":
                            del cells[stream]
                        yield event
            finally:
                for stream in cells:
                    ray.cancel(stream)
                for stream in cells:
                    while not isinstance(received(ray, stream), Ended):
                        pass

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Ray, connected to the cluster. It says nothing: whatever concerns a cell is an event."""
        ray = required()
        if ray.is_initialized():
            yield ray
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
        shares = {} if address != "local" else self._this_machine()
        knock(address)
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
            raise UserError(f"no Ray at {address}: {sentence(error)}") from None
        if threading.current_thread() is threading.main_thread():
            # Ray's own handler writes a page and aborts.
            signal.signal(signal.SIGTERM, termination or signal.SIG_DFL)
        talk = ray._private.worker
        talk._worker_logs_enabled = False  # Else a node's death is a page of its last words.
        try:
            yield ray
        finally:
            ray.shutdown()
            talk._worker_logs_enabled = True

    def _this_machine(self) -> dict[str, int]:
        """What a Ray on this machine has to share out. Raises `UserError` if no cell could run."""
        cores, gpus = machine.cores(), len(machine.accelerators())
        if self.cpus > cores:
            raise UserError(f"cpus = {self.cpus}: this machine has {cores}")
        if self.gpus > gpus:
            raise UserError(f"gpus = {self.gpus:g}: JAX, as installed here, can use {gpus}")
        return {"num_cpus": cores, "num_gpus": gpus}

    def _environment(self) -> dict[str, str]:
        """What a worker finds in its environment, beside what its node has there."""
        mine = {name: text for name, text in os.environ.items() if name.startswith(HANDED_ON)}
        mine["PERLA_CORES"] = str(self.cpus)
        if self.gpus == 0:
            mine.setdefault("JAX_PLATFORMS", "cpu")
        elif self.gpus < 1:
            mine.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 * self.gpus:.3f}")
        return mine


@dataclass
class Cell:
    """A task that is not over, here where its results are gathered."""

    task: Task
    node: str = "no node"
    """Where it was begun last."""
    tries: int = 0
    """How often it has been tried again."""

    def hear(self, news: News, retries: int) -> Event | None:
        """Make what has come durable, and say what it means to those who watch.

        Raises `UserError` where this machine's file system refuses.
        """
        log = log_of(self.task.folder)
        match news:
            case Begun(node):
                self.node = node
                return Event(self.task, "started", f"on {node}{self._start(', from')}")
            case Files():
                put(self.task.folder, news)
                return None
            case Ended(0):
                with explained(log):
                    log.unlink(missing_ok=True)
                return Event(self.task, "finished")
            case Ended(code, reason, said):
                if said:
                    write_atomic(log, said)
                if code in FINAL:
                    return Event(self.task, "failed", reason)
                if self.tries == retries:
                    return Event(self.task, "failed", f"{self.node}: {reason}")
                self.tries += 1
                start = self._start("goes on from") or "begins again"
                return Event(self.task, "retried", f"{self.node}: {reason}; {start}")

    def _start(self, words: str) -> str:
        """At which checkpoint whoever begins now begins; nothing if there is none."""
        names = (self.task.folder / "checkpoints").glob("step_*.safetensors")
        steps = [int(name.stem.removeprefix("step_")) for name in names]
        return f"{words} step {max(steps):,}" if steps else ""


def attempt(
    task: Task,
    files: dict[str, bytes],
    program: Sequence[str],
    environment: dict[str, str],
    versions: dict[str, str],
) -> Iterator[News]:
    """Carry `task` out on the node where this runs, beginning with `files` in its folder.

    `program` is what its Python shall run, `versions` those of whoever gathers the results.
    """
    ray = required()
    identity = ray.get_runtime_context().get_node_id()
    node = f"node {ray.util.get_node_ip_address()} ({identity[:6]})"
    yield Begun(node)
    for name, version in machine.versions().items():
        if version != versions.get(name):
            text = f"{name} is {version} there and {versions.get(name)} where it was asked for"
            yield Ended(2, f"{node}: {text}")
            return
    with TemporaryDirectory(prefix="perla-") as scratch:
        folder, log = Path(scratch, "run"), Path(scratch, "log")
        folder.mkdir()
        put(folder, Files(files))
        mirror = Mirror(folder)
        process = start(Task(task.run, folder), log, environment, program)
        try:
            while process.popen.poll() is None:
                time.sleep(POLL_SECONDS)
                if mirror.checkpointed:
                    yield mirror.news(finished=False)
            yield mirror.news(finished=process.popen.returncode == 0)
            reason = process.reason().replace(str(folder), str(task.folder))
            ended = Ended(process.popen.returncode, reason, log.read_bytes())
        finally:
            process.popen.kill()
            process.popen.wait()
    yield ended  # When all is cleared away, as whoever hears it may disconnect.


class Mirror:
    """A run's folder on a node, as far as it has been told about."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told = stamps(folder)

    @property
    def checkpointed(self) -> bool:
        """Whether there is a checkpoint that nobody has been told about."""
        new = stamps(self.folder).items() - self.told.items()
        return any(is_checkpoint(name) for name, _ in new)

    def news(self, *, finished: bool) -> Files:
        """What has changed. Only of a `finished` run is the summary told, which says that it is."""
        now = stamps(self.folder)
        if not finished:
            now.pop("summary.json", None)
        changed = [name for name, stamp in now.items() if stamp != self.told.get(name)]
        gone = sorted(self.told.keys() - now.keys())
        self.told = now
        return Files(contents(self.folder, changed), gone)


def stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """The files in a run's folder, each with what changes when it does.

    Checkpoints are listed first: whatever they follow is then found as well, if it is looked at
    afterwards.
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
    """The files `names` (None: all) of a run's folder, in the order in which they must be written:
    metrics before the checkpoints that follow them, and last what says that the run is finished.

    Raises `UserError` where one cannot be read; one that has just been pruned is left out.
    """
    found = {}
    for name in sorted(stamps(folder) if names is None else names, key=order):
        with explained(folder / name), suppress(FileNotFoundError):
            found[name] = read_regular(folder / name)
    return found


def order(name: str) -> tuple[bool, bool, bool, str]:
    """Sorts the files of a run's folder."""
    return name == "summary.json", is_checkpoint(name), name != "config.json", name


def is_checkpoint(name: str) -> bool:
    """Whether the file `name` of a run's folder is a checkpoint."""
    return name.startswith("checkpoints/")


def put(folder: Path, files: Files) -> None:
    """Write and remove files. At every moment the folder is one that can be gone on with."""
    for name, data in files.data.items():
        parent = make_below(folder, Path(name).parent)
        write_atomic(parent / Path(name).name, data)
    for name in files.gone:
        with explained(folder / name):
            (folder / name).unlink(missing_ok=True)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder, new or not, so that nobody else works on it.

    Raises `UserError` if somebody does, if it holds links, pipes or devices, or if the file system
    refuses.
    """
    from perla.runs.store import Folder

    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    check_run_folder(folder)
    holder = Folder(folder)
    holder.lock()
    try:
        for place in (folder, folder / "checkpoints"):
            if place.is_dir():
                remove_temporaries(place)
        yield
    finally:
        holder.unlock()
        with suppress(OSError):
            folder.rmdir()  # If nothing came of it.


def required() -> Any:
    """The package `ray`. Raises `UserError` if it is not installed."""
    try:
        import ray
    except ImportError:
        raise UserError("this needs Ray: pip install 'perla[ray]'") from None
    return ray


def knock(address: str) -> None:
    """Raise `UserError` if `address` is of no use: a client's, or a port where nobody answers."""
    if address.startswith("ray://"):
        raise UserError(
            f"{address}: Ray's client cannot stream files; start this on a machine of the "
            "cluster, with its own address or `auto`"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray at {address}: {sentence(error)}") from None


def received(ray: Any, stream: Any) -> News:
    """What comes next from an attempt."""
    try:
        return ray.get(next(stream))
    except StopIteration:
        return Ended(None, "ended without a word")
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        name = "" if isinstance(cause, UserError) else f"{type(cause).__name__}: "
        return Ended(1, name + str(cause).strip().split("\n")[-1], str(error).encode())
    except ray.exceptions.RayError as error:
        return Ended(None, sentence(error))


def sentence(error: BaseException) -> str:
    """The first sentence of what an error says."""
    words = re.split(r"[.:]?\s*\n|\.\s", f"{error}\n")[0].strip()
    return words[:1].lower() + words[1:] or type(error).__name__
