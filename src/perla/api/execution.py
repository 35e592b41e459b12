"""Arguments of training from Python that change no number, and its end by a signal."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

from perla.config import Count, NonNegative, convert, to_plain
from perla.runs import notebook
from perla.runs.callbacks import read_callbacks
from perla.runs.interrupt import Interrupted
from perla.runs.spec import OnNonFinite

Number: TypeAlias = Any
"""A number of Python, NumPy or JAX, or a number in text, such as `"1e6"`."""


def execution(
    *,
    quiet: bool,
    callbacks: Iterable[Any],
    checkpoint_seconds: Any,
    keep_checkpoints: Any,
    on_nonfinite: Any,
    log: str | Iterable[str],
) -> dict[str, Any]:
    """The arguments of `execute.train` and `execute.resume` that change no number."""
    kept = convert(to_plain(keep_checkpoints), Count | Literal["all"], name="keep_checkpoints")
    seconds = convert(to_plain(checkpoint_seconds), NonNegative, name="checkpoint_seconds")
    return {
        "display": notebook.display(quiet=quiet),
        "callbacks": read_callbacks(callbacks),
        "checkpoint_seconds": float(seconds),
        "keep_checkpoints": None if kept == "all" else kept,
        "on_nonfinite": convert(on_nonfinite, OnNonFinite, name="on_nonfinite"),
        "log": log,
    }


def count(value: Number | None, name: str) -> int | None:
    """A whole number that may be left open."""
    return None if value is None else convert(to_plain(value), Count, name=name)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the end of a run by a signal into the exception that Python has for it."""
    try:
        yield
    except Interrupted as interrupted:
        if interrupted.exit_code == 128 + signal.SIGINT:
            raise KeyboardInterrupt(str(interrupted)) from None
        raise SystemExit(interrupted.exit_code) from interrupted
