"""A run in a file: `perla train --print-config` writes it, and `--config` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from perla.config import VERSION, check_version, encode, from_json
from perla.envs.registry import Trust, check_trust
from perla.files import decode, explained, read_regular
from perla.runs.spec import Run


class _File(msgspec.Struct):
    """The parts of a file, or of a `config.json`, that are read."""

    run: msgspec.Raw
    settings_version: Any = None


def render_run(run: Run) -> str:
    """`run` as the text of a file."""
    return encode({"settings_version": VERSION, "run": run}).decode()


def read_run(path: Path, *, env: str | None, trust: Trust) -> Run:
    """The run in a file, on the environment `env` if one is given. It begins anew: an extended run
    as one of all its steps, and a warm start is the command line's to name.

    Raises `UserError` for a mistake in the file, and if its environment is code that the user does
    not trust.
    """
    with explained(path):
        text = read_regular(path, follow=True)
    file = decode(text, _File, source=path)
    check_version(file.settings_version, source=str(path))
    run = from_json(bytes(file.run), Run, source=str(path))
    if env is not None:
        run = run.replace(env=env, env_options=run.env_options if env == run.env else {})
    else:
        check_trust([run.env], trust, source=path)
    return run.replace(extended_from=(), warm_start=None)
