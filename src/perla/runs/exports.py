"""Policies of runs as files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perla.envs.protocol import Env, HostEnv
from perla.errors import nearest
from perla.files import write_atomic
from perla.policies import export
from perla.policies.check import check


def default_path(folder: Path, format: str) -> Path:
    """The file of a run's policy in a `format`. Raises `UserError` for an unknown format."""
    if format not in export.FORMATS:
        raise nearest(format, export.FORMATS, what="format")
    return folder / f"policy{export.suffix(format)}"


def write(path: Path, env: Env | HostEnv, actor: Any, format: str) -> int:
    """Write the policy of `actor` to `path`, once it chooses the same actions. Returns the number
    of actions that were compared. Raises `UserError` as `perla.policies.export.export` does, and if
    an action differs."""
    data = export.export(actor, env.spec, format)
    compared = check(export.load(data, format), env, actor)
    write_atomic(path, data)
    return compared
