"""Parts of a calculation: each computed once, in as many processes as this machine has room for."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from perla import machine
from perla.errors import UserError
from perla.experiments.experiment import Part
from perla.files import explained, read_regular, write_atomic
from perla.runs.store import dump
from perla.suites.local import room
from perla.suites.suite import slug

WAIT_SECONDS = 1.0


def recall(
    parts: Sequence[Part],
    folder: Path,
    *,
    processes: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Any]:
    """What `parts` found, as JSON holds it: from `folder`, where an earlier call has left it, or
    else computed now, the longest first, and left there. `say` hears how far it is.

    Parts of the same name that depend on the same are one. Raises `UserError` for a file that holds
    no such, and where a process dies.
    """
    paths = [folder / place(part) for part in parts]
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    known = dict(zip(paths, parts, strict=True))
    left = [(path, part) for path, part in known.items() if not path.exists()]
    left.sort(key=lambda each: each[1].weight, reverse=True)  # so that processes end together
    ahead, behind = sum(part.weight for _, part in left), 0.0
    started = time.monotonic()
    # Closed at once, wherever an interruption falls: its processes must not go on.
    with closing(_compute([part for _, part in left], processes)) as results:
        for done, (index, found) in enumerate(results, start=1):
            path, part = left[index]
            with explained(path):
                facts = {"name": part.name, "depends": part.depends, "found": found}
                write_atomic(path, dump(facts))
            ahead, behind = ahead - part.weight, behind + part.weight
            minutes = (time.monotonic() - started) / behind * ahead / 60
            say(f"{part.name}: {done} of {len(left)}, {minutes:.0f} min left")
    return [_found(path) for path in paths]


def place(part: Part) -> str:
    """The name of the file that holds what a part found."""
    digest = hashlib.sha256(json.dumps([part.name, part.depends]).encode()).hexdigest()
    return f"{slug(part.name)}-{digest[:8]}.json"


def _found(path: Path) -> Any:
    with explained(path):
        try:
            return json.loads(read_regular(path))["found"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: holds no result; delete it to compute it anew") from None


def _compute(
    parts: Sequence[Part], processes: int | None
) -> Generator[tuple[int, Any], None, None]:
    """The position of each part and what it found, as they come.

    Processes, as two threads that compute at once can keep all of XLA's own waiting for each other;
    and one where there is an accelerator, of which each would take all memory.
    """
    count = min(len(parts), processes or (1 if machine.accelerators() else room()))
    if count <= 1:
        for index, part in enumerate(parts):
            yield index, part.compute()
        return
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    shares = spawn.SimpleQueue()
    for share in machine.shares(count):
        shares.put(share)
    with ProcessPoolExecutor(count, spawn, initializer=_begin, initargs=(shares,)) as pool:
        futures = {pool.submit(part.compute): index for index, part in enumerate(parts)}
        try:
            waiting = set(futures)
            while waiting:
                # Not for ever: a signal just before a wait begins is heard only when it ends.
                done, waiting = wait(waiting, WAIT_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    yield futures[future], future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    "a process died, perhaps for want of memory; the same command goes on, and "
                    "with --processes 1 it needs less"
                ) from None
            raise


def _begin(shares: SimpleQueue[list[int]]) -> None:
    """A process begins: on its share of the cores, so that XLA starts no more threads than these,
    and only as long as its parent lives."""
    from perla.runs import backend

    cores = shares.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    os.environ["PERLA_CORES"] = str(len(cores))
    backend.prepare()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
