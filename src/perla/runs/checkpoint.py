"""Checkpoints: the complete state of a run in one file, whose loading executes no code.

A checkpoint is a safetensors file with the arrays of a pytree, each under its path in the tree, and
a line of JSON (`Meta`) with the run's identity, the evaluation it follows and a digest of all this.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
import safetensors
import safetensors.numpy

from perla.config import Config, from_json
from perla.errors import UserError
from perla.files import decode, explained, read_regular, write_atomic

FORMAT = 3
KEEP = 2
"""Checkpoints of a run that are kept: the newest, and the one before in case it is damaged."""


class Meta(Config, frozen=True, kw_only=True):
    """The metadata of a checkpoint."""

    run: str
    """The identity of the run: `Run.identity`."""
    evaluation: int
    """The number of the last evaluation before it; number 0 is the one before training."""
    step: int
    """The environment steps that every seed has made."""
    metrics_lines: int
    """The lines that `metrics.jsonl` had."""
    metrics_digest: str
    """SHA-256 of these lines."""
    wall_seconds: float
    """Seconds spent so far, without compilation."""
    compile_seconds: float
    """Seconds spent on compilation."""
    format: int = FORMAT
    """The version of this format."""
    digest: str = ""
    """SHA-256 of the arrays and the other metadata; `save` computes it."""


def save(path: Path, tree: Any, meta: Meta) -> None:
    """Write `tree` (arrays) to `path`, atomically and durably.

    Raises `UserError` if the operating system refuses; `path` is then unchanged.
    """
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in named(tree)}
    meta = meta.replace(digest=_digest(arrays, meta))
    text = msgspec.json.encode(meta).decode()
    write_atomic(path, safetensors.numpy.save(arrays, metadata={"perla": text}))


def load(path: Path, template: Any) -> tuple[Any, Meta]:
    """The tree in `path`, which must have the names, shapes and types of `template`.

    Raises `UserError`, naming the file and the cause, if the file is missing, unreadable, truncated
    or damaged, if it is no checkpoint of perla, or if it belongs to another configuration.
    """
    arrays, meta = read(path)
    expected = dict(named(template))
    for name in sorted(expected.keys() | arrays.keys()):
        actual, wanted = signature(arrays.get(name)), signature(expected.get(name))
        if actual != wanted:
            raise UserError(
                f"{path}: checkpoint of another configuration: {name} is {actual}, "
                f"expected {wanted}"
            )
    leaves = [arrays[name] for name in expected]
    return jax.tree.unflatten(jax.tree.structure(template), leaves), meta


def read(path: Path) -> tuple[dict[str, np.ndarray], Meta]:
    """The arrays in `path` by their paths in the tree, and the metadata. Raises `UserError` as
    `load` does for a file that is missing or damaged."""
    with explained(path):
        data = read_regular(path)
    meta = _parse_meta(path, data)
    try:
        arrays = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged checkpoint ({_line(error)})") from None
    if _digest(arrays, meta) != meta.digest:
        raise UserError(f"{path}: damaged checkpoint (its digest does not match)")
    return arrays, meta


def load_meta(path: Path) -> Meta:
    """The metadata of the checkpoint in `path`, whose arrays are not checked. Raises `UserError` as
    `load`."""
    with explained(path):
        return _parse_meta(path, read_regular(path))


def path_of(folder: Path, step: int) -> Path:
    """The path of the checkpoint of `step` in the folder of checkpoints."""
    return folder / f"step_{step:012d}.safetensors"


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the newest first."""
    paths = [p for p in folder.glob("step_*.safetensors") if re.fullmatch(r"step_\d+", p.stem)]
    return sorted(paths, key=lambda path: int(path.stem.removeprefix("step_")), reverse=True)


def prune(folder: Path, keep: int | None = KEEP) -> None:
    """Remove all but the newest `keep` checkpoints, or none if that is None. To be called when the
    newest is durable."""
    if keep is not None:
        remove(newest_first(folder)[keep:])


def remove(paths: Iterable[Path]) -> None:
    """Remove checkpoints."""
    for path in paths:
        with explained(path):
            path.unlink(missing_ok=True)


def _parse_meta(path: Path, data: bytes) -> Meta:
    """The metadata in the header of a safetensors file.

    The header is parsed here so that every kind of damage gets its own message.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or data[8:9] != b"{":
        raise UserError(f"{path}: not a checkpoint" + ("" if data else " (the file is empty)"))
    if 8 + length > len(data):
        raise UserError(f"{path}: truncated checkpoint")
    try:
        header: dict[str, Any] = decode(data[8 : 8 + length], dict[str, Any], source=path)
        entries = [entry for key, entry in header.items() if key != "__metadata__"]
        end = max((int(entry["data_offsets"][1]) for entry in entries), default=0)
        text = header.get("__metadata__", {}).get("perla")
    except (UserError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        raise UserError(f"{path}: not a checkpoint") from None
    if not isinstance(text, str):
        raise UserError(f"{path}: not a checkpoint of perla, though a safetensors file")
    if len(data) < 8 + length + end:
        raise UserError(f"{path}: truncated checkpoint")
    version = None
    with suppress(UserError):
        version = decode(text, dict[str, Any], source=path).get("format")
    if version != FORMAT:
        raise UserError(f"{path}: checkpoint of format {version}; this perla reads format {FORMAT}")
    return from_json(text.encode(), Meta, source=str(path))


def named(tree: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of `tree` with their paths."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path) or ".", leaf


def signature(leaf: Any) -> str:
    """The type and shape of an array."""
    return "absent" if leaf is None else f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _digest(arrays: Mapping[str, np.ndarray], meta: Meta) -> str:
    digest = hashlib.sha256(msgspec.json.encode(meta.replace(digest="")))
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"{name} {signature(array)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
