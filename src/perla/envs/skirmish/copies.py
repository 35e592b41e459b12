"""Vectorisation over copies of an environment as the last axis of every array.

A battle is simulated by operations between few units, in many copies of the environment. With the
copies as the last axis these are long, contiguous loops, which a CPU runs several times faster than
the loops that `jax.vmap` makes with the copies as the first axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def over_copies(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one copy from a `function` of arrays with a last axis of copies.

    Under `jax.vmap`, also if nested, `function` is called once, with all copies in the last axis.
    """

    @jax.custom_batching.custom_vmap
    def batched(*arguments):
        return function(*arguments)

    @batched.def_vmap
    def rule(size, mapped, *arguments):
        copies = jax.tree.leaves(arguments)[0].shape[-1]

        def merge(leaf, is_mapped):
            if not is_mapped:
                leaf = jnp.broadcast_to(leaf[None], (size, *leaf.shape))
            return jnp.moveaxis(leaf, 0, -2).reshape(*leaf.shape[1:-1], size * copies)

        def split(leaf):
            return jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], size, copies), -2, 0)

        result = jax.tree.map(split, batched(*jax.tree.map(merge, arguments, tuple(mapped))))
        return result, jax.tree.map(lambda _: True, result)

    def single(*arguments):
        result = batched(*jax.tree.map(lambda leaf: jnp.asarray(leaf)[..., None], arguments))
        return jax.tree.map(lambda leaf: leaf[..., 0], result)

    return single
