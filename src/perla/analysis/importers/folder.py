"""A folder of imported results: the layout of marl-eval, and the meaning of its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from perla.analysis import tables
from perla.analysis.load import Curves
from perla.errors import UserError
from perla.files import decode, explained, read_regular, write_atomic

RESULTS, MEANING = "marl_eval.json", "import.json"
"""The files of the folder."""


class Meaning(msgspec.Struct):
    """The origin of imported numbers."""

    source: str
    """The program."""
    meaning: tuple[str, ...]
    """Lines on its steps and returns."""
    names_policy: bool
    """True if it says that `return` is of greedy and `return_sampled` of sampled actions."""


Meanings = dict[str, dict[str, Meaning]]
"""task → method → origin."""


def write(runs: Sequence[Curves], out: Path) -> None:
    """Write `runs` to the new folder `out`. Raises `UserError` if it exists and is not empty, or if
    two runs are of one method on one task."""
    with explained(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: exists and is not empty; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
    meanings: Meanings = {}
    for run in runs:
        meanings.setdefault(run.task, {})[run.method] = Meaning(
            run.source, run.meaning, run.names_policy
        )
    write_atomic(out / RESULTS, _dump(tables.marl_eval(runs)))
    write_atomic(out / MEANING, _dump(meanings))


def meanings(results: Path) -> Meanings:
    """The origins that stand beside the file `results`; empty if none do."""
    path = results.with_name(MEANING)
    if not path.exists():
        return {}
    with explained(path):
        found: Meanings = decode(read_regular(path), Meanings, source=path)
    return found


def _dump(facts: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n"
