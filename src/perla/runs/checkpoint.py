"""Checkpoints: everything a run needs to go on to the bit, in one file that executes nothing.

A checkpoint is a safetensors file: the arrays of a pytree, each under its path in the tree, and
a line of JSON that says how far the run was, to which run it belongs, and the digest of its arrays.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
import safetensors
import safetensors.numpy

from perla.config import Config, from_json
from perla.errors import UserError
from perla.files import explained, read_regular, write_atomic

FORMAT = 2
KEEP = 2
"""Checkpoints of a run that are kept: the newest and, should it be damaged, the one before."""


class Meta(Config, frozen=True, kw_only=True):
    """What a checkpoint says of itself."""

    run: str
    """The identity of the run: `Run.identity`."""
    evaluation: int
    """The number of the evaluation that it follows; the one before all training is number 0."""
    step: int
    """The environment steps at which that evaluation was due."""
    wall_seconds: float
    """Seconds spent so far, without compilation."""
    compile_seconds: float
    """Seconds spent on compilation."""
    format: int = FORMAT
    """The version of this format."""
    digest: str = ""
    """SHA-256 of the arrays and of what stands here; `save` fills it in."""


def save(path: Path, tree: Any, meta: Meta) -> None:
    """Write `tree` (arrays) to `path`, atomically and durably.

    Raises `UserError` where the operating system refuses; then `path` is as it was.
    """
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in _named(tree)}
    meta = meta.replace(digest=_digest(arrays, meta))
    text = msgspec.json.encode(meta).decode()
    write_atomic(path, safetensors.numpy.save(arrays, metadata={"perla": text}))


def load(path: Path, template: Any) -> tuple[Any, Meta]:
    """The tree in `path`, which must have the names, shapes and types of `template`.

    Raises `UserError`, naming the file and the cause, if it is missing or unreadable, truncated
    or damaged, no checkpoint of ours, or one of another configuration.
    """
    with explained(path):
        data = read_regular(path)
    meta = _read_meta(path, data)
    try:
        arrays = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path}: damaged checkpoint ({_line(error)})") from None
    if _digest(arrays, meta) != meta.digest:
        raise UserError(f"{path}: damaged checkpoint (its digest does not match)")
    expected = dict(_named(template))
    for name in sorted(expected.keys() | arrays.keys()):
        have, want = _signature(arrays.get(name)), _signature(expected.get(name))
        if have != want:
            raise UserError(
                f"{path}: checkpoint of another configuration: {name} is {have}, expected {want}"
            )
    leaves = [arrays[name] for name in expected]
    return jax.tree.unflatten(jax.tree.structure(template), leaves), meta


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies in the folder of checkpoints."""
    return folder / f"step_{step:012d}.safetensors"


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in `folder`."""
    named = [p for p in folder.glob("step_*.safetensors") if re.fullmatch(r"step_\d+", p.stem)]
    return sorted(named, key=lambda path: int(path.stem.removeprefix("step_")), reverse=True)


def prune(folder: Path) -> None:
    """Remove all but the newest two checkpoints. Call it once the newest is durable."""
    with explained(folder):
        for path in newest_first(folder)[KEEP:]:
            path.unlink(missing_ok=True)


def _read_meta(path: Path, data: bytes) -> Meta:
    """The metadata in the header of a safetensors file, read by hand so that each way in which a
    file can be wrong gets its own words."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or data[8:9] != b"{":
        raise UserError(f"{path}: not a checkpoint" + ("" if data else " (the file is empty)"))
    if 8 + length > len(data):
        raise UserError(f"{path}: truncated checkpoint")
    try:
        header = msgspec.json.decode(data[8 : 8 + length], type=dict[str, Any])
        entries = [entry for key, entry in header.items() if key != "__metadata__"]
        end = max((int(entry["data_offsets"][1]) for entry in entries), default=0)
        text = header.get("__metadata__", {}).get("perla")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path}: not a checkpoint") from None
    if not isinstance(text, str):
        raise UserError(f"{path}: not a checkpoint of perla, though a safetensors file")
    if len(data) < 8 + length + end:
        raise UserError(f"{path}: truncated checkpoint")
    try:
        version = msgspec.json.decode(text.encode(), type=dict[str, Any]).get("format")
    except (msgspec.DecodeError, UnicodeEncodeError):
        version = None
    if version != FORMAT:
        raise UserError(f"{path}: checkpoint of format {version}; this perla reads format {FORMAT}")
    return from_json(text.encode(), Meta, source=str(path))


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path) or ".", leaf


def _signature(leaf: Any) -> str:
    return "absent" if leaf is None else f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _digest(arrays: Mapping[str, np.ndarray], meta: Meta) -> str:
    digest = hashlib.sha256(msgspec.json.encode(meta.replace(digest="")))
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"{name} {_signature(array)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
