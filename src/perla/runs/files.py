"""Files that are either the old or the new, never something between."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from perla.errors import UserError


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses on `path` into one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(f"{path}: {reason[:1].lower()}{reason[1:]}") from None


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` durably. Whatever happens meanwhile, `path` holds the old or the
    new content in full. Raises `UserError` if the operating system refuses (a full disk, …)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Clear what a killed process left half-written."""
    with explained(folder):
        for file in folder.iterdir():
            if is_temporary(file):
                file.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether `path` is what `write_atomic` writes before it is complete."""
    return re.fullmatch(r"\..+\.\d+\.tmp", path.name) is not None


def append(path: Path, data: bytes) -> None:
    """Append `data` durably and whole: if the disk is full, `path` stays as it was."""
    with explained(path), open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(data):
                written += file.write(data[written:])
            os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                file.truncate(before)
            raise
