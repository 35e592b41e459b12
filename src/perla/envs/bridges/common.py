"""What the bridges to other families of worlds share."""

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
    """`options`, each of the type that is `known` of it; `UserError` for any that is not."""
    for option in options:
        if option not in known and not known:
            raise UserError(f"{of} takes no option, so no {option!r} either")
        if option not in known:
            raise nearest(option, known, what=f"option of {of}")
    return {
        name: convert(value, known[name], name=f"{of}: {name}") for name, value in options.items()
    }


def build_env(id: str, make: Callable[..., Any], **options: Any) -> Any:
    """What `make` makes; what it refuses to make, as a `UserError`."""
    try:
        with allow_broadcasting():
            return make(**options)
    # By these their constructors refuse an argument; whatever else they raise is a bug, to be seen.
    except (AssertionError, NotImplementedError, TypeError, ValueError, ZeroDivisionError) as error:
        raise construction_error(id, options, error) from None


def allow_broadcasting() -> contextlib.AbstractContextManager[Any]:
    """Around calls into other people's code, which may broadcast as NumPy does."""
    return jax.numpy_rank_promotion("allow")


def raw_key(key: PRNGKeyArray) -> Array:
    """`key` as other families keep it in their states: plain numbers, so that checkpoints can
    hold it."""
    return jax.random.key_data(key)


def as_arrays(tree: Any) -> Any:
    """`tree` with arrays of definite type for leaves, so that every step's state is alike."""

    def settle(leaf: Any) -> Array:
        array = jnp.asarray(leaf)
        return jax.lax.convert_element_type(array, array.dtype)

    return jax.tree.map(settle, tree)


def pad_rows(seen: Sequence[Array]) -> Float[Array, "agent feature"]:
    """What each agent sees, as one row of numbers, padded with zeros to the longest."""
    flat = [jnp.ravel(one).astype(jnp.float32) for one in seen]
    longest = max(one.size for one in flat)
    return jnp.stack([jnp.pad(one, (0, longest - one.size)) for one in flat])


def concatenate(seen: Sequence[Array]) -> Float[Array, " state"]:
    """All that the agents see, one after another: the state of a world that offers none."""
    return jnp.concatenate([jnp.ravel(one).astype(jnp.float32) for one in seen])


def existing_actions(actions: Sequence[int]) -> Bool[Array, "agent action"]:
    """Which actions, or dimensions of one, agents with so many have at all."""
    return jnp.arange(max(actions))[None, :] < jnp.asarray(actions)[:, None]


def scale_action(action: Float[Array, " action"], low: Any, high: Any) -> Float[Array, " action"]:
    """From [-1, 1] to what the world takes."""
    low, high = jnp.broadcast_to(low, action.shape), jnp.broadcast_to(high, action.shape)
    return low + (action + 1) / 2 * (high - low)
