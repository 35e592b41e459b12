"""Files: only regular ones are read, and writes are atomic.

A folder may come from somebody else. Symbolic links, pipes, sockets and devices in it are never
opened, so that nothing outside the folder is read, written or removed, and no read blocks. The
folder that the user names may itself be a link.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec

from perla.errors import UserError

KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""Kinds of directory entries, in words."""

LAYOUT = {
    "config.json": stat.S_IFREG,
    "metrics.jsonl": stat.S_IFREG,
    "summary.json": stat.S_IFREG,
    "marl_eval.json": stat.S_IFREG,
    "checkpoints": stat.S_IFDIR,
}
"""The entries of a run folder with a fixed name, and their kinds."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `UserError` with `path` and the reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(f"{path}: {reason[:1].lower()}{reason[1:]}") from None


def decode(data: bytes | str, kind: Any, *, source: object) -> Any:
    """The JSON in `data` as a `kind`; raises `UserError` for any damage, with `source` and why."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise UserError(f"{source}: damaged (nested too deep)") from None
    except (msgspec.DecodeError, ValueError, OverflowError, UserError) as error:
        raise UserError(f"{source}: damaged ({error})") from None


# --- Untrusted folders --------------------------------------------------------------------------


def check_run_folder(folder: Path) -> None:
    """Raise `UserError`, naming the entry, if `folder` has anything but the regular files and
    directories of a run. `checkpoints` may have regular files only."""
    for path, status in _entries(folder):
        wanted = LAYOUT.get(path.name)
        if wanted is None:
            wanted = stat.S_IFDIR if stat.S_ISDIR(status.st_mode) else stat.S_IFREG
        _check_kind(path, status, wanted)
        if path.name == "checkpoints":
            for checkpoint, checkpoint_status in _entries(path):
                _check_kind(checkpoint, checkpoint_status, stat.S_IFREG)


def check_directory(path: Path) -> None:
    """Raise `UserError` if `path` exists and is no directory; a link to one is refused too."""
    with explained(path), suppress(FileNotFoundError):
        _check_kind(path, os.lstat(path), stat.S_IFDIR)


def make_below(base: Path, relative: Path) -> Path:
    """Create the directory `base / relative`. `base` may be a link, but nothing below it.

    Raises `UserError` if the path leads out of `base` or the file system refuses.
    """
    if relative.is_absolute() or ".." in relative.parts:
        raise UserError(f"{base / relative}: leads out of {base}")
    path = base
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
    for part in relative.parts:
        path = path / part
        check_directory(path)
        with explained(path):
            path.mkdir(exist_ok=True)
    return path


def open_regular(path: Path, mode: str = "rb", *, follow: bool = False) -> FileIO:
    """Open the regular file `path` without a buffer; `follow` allows a link to one.

    Raises `UserError` for other kinds of entries, and `OSError` as `open` does.
    """
    return FileIO(os.fspath(path), mode, opener=functools.partial(_descriptor, follow=follow))


def read_regular(path: Path, *, follow: bool = False) -> bytes:
    """The content of `path`, opened as by `open_regular`."""
    with open_regular(path, follow=follow) as file:
        return file.read()


def _descriptor(path: str, flags: int, *, follow: bool) -> int:
    # Checked before and after: opening a device may have effects.
    with suppress(FileNotFoundError):
        _check_kind(path, os.stat(path, follow_symlinks=follow), stat.S_IFREG)
    flags |= os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, 0o666)
    try:
        _check_kind(path, os.fstat(descriptor), stat.S_IFREG)
    except UserError:
        os.close(descriptor)
        raise
    return descriptor


def _entries(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The entries of `folder`, sorted by name; none if it is no directory."""
    with explained(folder):
        try:
            names = sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
    for name in names:
        with suppress(FileNotFoundError):  # A running process renames and removes entries.
            yield folder / name, os.lstat(folder / name)


def _check_kind(path: object, status: os.stat_result, wanted: int) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != wanted:
        raise UserError(f"{path}: is {KINDS.get(kind, 'something else')}, not {KINDS[wanted]}")


# --- Writing ------------------------------------------------------------------------------------


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace the content of `path` by `data` atomically: `path` always has the old or the new
    content in full. After a loss of power too, if it is `durable`.

    Raises `UserError` if the operating system refuses (a full disk, …).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path):
        try:
            temporary.unlink(missing_ok=True)
            with open_regular(temporary, "xb") as file:
                _write(file, data, durable=durable)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the entries of a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files of a killed process."""
    with explained(folder):
        files = list(folder.iterdir())
    for file in filter(is_temporary, files):
        with explained(file):
            file.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """True for the temporary files of `write_atomic`."""
    return re.fullmatch(r"\..+\.\d+\.tmp", path.name) is not None


def append(path: Path, data: bytes) -> None:
    """Append `data` durably; if that fails (a full disk), restore `path`."""
    with explained(path), open_regular(path, "ab") as file:
        before = file.seek(0, os.SEEK_END)
        try:
            _write(file, data)
        except BaseException:
            with suppress(OSError):
                file.truncate(before)
            raise


def _write(file: FileIO, data: bytes, *, durable: bool = True) -> None:
    written = 0
    while written < len(data):
        written += file.write(data[written:])
    if durable:
        os.fsync(file.fileno())
