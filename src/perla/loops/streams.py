"""Streams of random numbers: training splits a seed's key, and every other use of it has a key of
its own."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from perla.keys import apart
from perla.types import PRNGKeyArray


class Stream(IntEnum):
    """A use of random numbers beside training."""

    RESET = 0
    """Host environments that begin anew, at a run's start and on resume."""
    EVALUATION = 1
    """The evaluations of a run."""
    ABSOLUTE = 2
    """The absolute metric, on episodes that no evaluation has seen."""
    PLAY = 3
    """Episodes of `perla evaluate`."""
    FILM = 4
    """Episodes that are drawn."""


def number(stream: Stream, part: int = 0) -> np.int32:
    """The number of a `part` of a `stream`, which no other part of any stream has."""
    return np.int32(stream.value + len(Stream) * part)


def stream_key(key: PRNGKeyArray, stream: Stream) -> PRNGKeyArray:
    """The key of a `stream` of `key`."""
    return apart(key, number(stream))
