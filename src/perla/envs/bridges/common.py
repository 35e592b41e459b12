"""Helpers shared by the bridges to environments in JAX."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from perla.config import convert
from perla.envs.bridges.optional import construction_error
from perla.errors import UserError, nearest
from perla.types import Array, Bool, Float, PRNGKeyArray


def check_options(
    options: Mapping[str, Any], known: Mapping[str, Any], *, of: str
) -> dict[str, Any]:
    """`options`, converted to the types in `known`. Raises `UserError` for an unknown option or a
    wrong type."""
    for option in options:
        if option not in known and not known:
            raise UserError(f"{of} has no options, so {option!r} is unknown")
        if option not in known:
            raise nearest(option, known, what=f"option of {of}")
    return {
        name: convert(value, known[name], name=f"{of}: {name}") for name, value in options.items()
    }


def build_env(id: str, make: Callable[..., Any], **options: Any) -> Any:
    """Call `make(**options)`; an error of the constructor becomes a `UserError`."""
    try:
        with allow_broadcasting():
            return make(**options)
    # Constructors raise these for bad arguments; any other exception is a bug and stays visible.
    except (AssertionError, NotImplementedError, TypeError, ValueError, ZeroDivisionError) as error:
        raise construction_error(id, options, error) from None


def allow_broadcasting() -> contextlib.AbstractContextManager[Any]:
    """Context for calls into other libraries, which may rely on NumPy's rank promotion."""
    return jax.numpy_rank_promotion("allow")


def raw_key(key: PRNGKeyArray) -> Array:
    """`key` as an array of plain numbers, which checkpoints can hold in an environment's state."""
    return jax.random.key_data(key)


def as_arrays(tree: Any) -> Any:
    """`tree` with strongly typed arrays as leaves, so that the state's types never change."""

    def as_array(leaf: Any) -> Array:
        array = jnp.asarray(leaf)
        return jax.lax.convert_element_type(array, array.dtype)

    return jax.tree.map(as_array, tree)


def pad_rows(observations: Sequence[Array]) -> Float[Array, "agent feature"]:
    """Agents' observations, flattened and padded with zeros to the longest."""
    flat = [jnp.ravel(row).astype(jnp.float32) for row in observations]
    longest = max(row.size for row in flat)
    return jnp.stack([jnp.pad(row, (0, longest - row.size)) for row in flat])


def concatenate(observations: Sequence[Array]) -> Float[Array, " state"]:
    """Agents' observations, flattened and concatenated: the state where there is no other."""
    return jnp.concatenate([jnp.ravel(row).astype(jnp.float32) for row in observations])


def existing_actions(actions: Sequence[int]) -> Bool[Array, "agent action"]:
    """Mask without the padding: the actions, or dimensions, of agents with so many `actions`."""
    return jnp.arange(max(actions))[None, :] < jnp.asarray(actions)[:, None]


def scale_action(action: Float[Array, " action"], low: Any, high: Any) -> Float[Array, " action"]:
    """Scale `action` from [-1, 1] to the bounds [`low`, `high`]."""
    low, high = jnp.broadcast_to(low, action.shape), jnp.broadcast_to(high, action.shape)
    return low + (action + 1) / 2 * (high - low)
