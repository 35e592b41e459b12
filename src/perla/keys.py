"""Keys of random numbers for a second use.

JAX derives the i-th key of a split and `fold_in(key, i)` alike, so that folding in a small number
may repeat a key that a split gave.
"""

from __future__ import annotations

import jax
import numpy as np

from perla.types import Array, Int, PRNGKeyArray

APART = np.uint32(2**32 - 1)
"""Folded in first; no split has that many keys."""


def apart(key: PRNGKeyArray, number: int | np.int32 | Int[Array, ""] = 0) -> PRNGKeyArray:
    """A key that no split of `key` gives, one for each `number`."""
    return jax.random.fold_in(jax.random.fold_in(key, APART), number)
