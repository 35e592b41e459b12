"""Episodes of a run's policies, and the choice of a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from perla.loops.protocol import AnyTrainer
from perla.loops.streams import Stream, stream_key
from perla.runs.spec import Run
from perla.runs.store import Folder

EPISODES = 320
"""Episodes of a seed, unless the user says otherwise."""


def play(trainer: AnyTrainer, actor: Any, seed: int, episodes: int, *, greedy: bool) -> Any:
    """The `perla.loops.evaluate.Episodes` that the `actor` of this `seed` plays, the same in every
    call."""
    key = stream_key(jax.random.key(seed), Stream.PLAY)
    return trainer.play(actor, key, jnp.full(episodes, greedy))


def best_seed(summary: Mapping[str, Any]) -> int:
    """The seed of a finished run with the highest absolute return, greedy or sampled."""
    return int(max(summary["seeds"], key=lambda entry: max(_returns(entry)))["seed"])


def best_greedy_seed(summary: Mapping[str, Any]) -> int:
    """The seed of a finished run with the highest absolute return of the greedy policy."""
    return int(max(summary["seeds"], key=lambda entry: _returns(entry)[0])["seed"])


def default_seed(run: Run, folder: Folder) -> int:
    """The best seed of a finished run, and the first of any other."""
    return best_seed(folder.summary()) if folder.finished else run.seeds[0]


def is_greedy_better(summary: Mapping[str, Any], seed: int) -> bool:
    """True if the greedy policy of the `seed` has an absolute return at least as high as the
    sampled one."""
    (entry,) = (entry for entry in summary["seeds"] if entry["seed"] == seed)
    greedy, sampled = _returns(entry)
    return greedy >= sampled


def _returns(entry: Mapping[str, Any]) -> tuple[float, float]:
    """The absolute returns of a seed's greedy and sampled policy; −∞ where there is none."""
    values = (entry["absolute"].get(name) for name in ("return", "return_sampled"))
    greedy, sampled = (-math.inf if value is None else float(value) for value in values)
    return greedy, sampled
