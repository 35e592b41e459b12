"""Data-parallel training: each of several devices has a share of a batch.

Inside `split`, every device computes a function on its own share. `total` and `average` are those
of all shares, so a mean that is made of totals is the whole batch's, and so is its gradient by
`grad`. Outside, the one share is the whole batch, and these functions return what they are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from perla.keys import apart
from perla.types import Array, Int, PRNGKeyArray

AXIS = "device"
"""The axis of the devices: a name for JAX's collective operations, and of a `Mesh`."""

Tree = TypeVar("Tree")


def split(f: Callable, mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable:
    """`f` on every device of `mesh`, with its share of the arguments; `f` itself without a mesh.

    The specs, trees of `PartitionSpec`, name the axis of each array that is divided. All other
    results must be equal on all devices.
    """
    if mesh is None:
        return f
    # The check of JAX would refuse loops in environments of other libraries.
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def shares() -> int:
    """The number of devices that share the batch: 1 outside of `split`."""
    try:
        return jax.lax.axis_size(AXIS)
    except NameError:
        return 1


def total(tree: Tree) -> Tree:
    """The sums over all shares of sums over one."""
    return tree if shares() == 1 else jax.lax.psum(tree, AXIS)


def average(tree: Tree) -> Tree:
    """The means over all shares."""
    return tree if shares() == 1 else jax.lax.pmean(tree, AXIS)


def of_all(tree: Tree) -> Tree:
    """The values of every share, stacked: arrays `[share, ...]`."""
    if shares() == 1:
        return jax.tree.map(lambda x: x[None], tree)
    return jax.lax.all_gather(tree, AXIS)


def gathered(tree: Tree) -> Tree:
    """The arrays of all shares, one after another along the first axis."""
    return tree if shares() == 1 else jax.lax.all_gather(tree, AXIS, tiled=True)


def position() -> int | Int[Array, ""]:
    """The number of the own share, from 0 on."""
    return 0 if shares() == 1 else jax.lax.axis_index(AXIS)


def common(tree: Tree) -> Tree:
    """The values of the first share, on every device: for random choices that all must share."""
    return tree if shares() == 1 else jax.tree.map(lambda x: x[0], of_all(tree))


def own(key: PRNGKeyArray) -> PRNGKeyArray:
    """A key for each share; outside of `split`, `key`."""
    return key if shares() == 1 else apart(key, position())


def grad(loss: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """`jax.grad(loss, has_aux=True)` of a `loss` that is made of means over the whole batch.

    The derivative of a `total` with respect to each share counts once for each device that has the
    total; the average over devices removes this factor, and adds the shares.
    """

    def gradient(*arguments: Any) -> tuple[Any, Any]:
        local, aux = jax.grad(loss, has_aux=True)(*arguments)
        return average(local), aux

    return gradient
