"""Checks of environments that perla did not write, and their errors in one line.

Worker processes import this: JAX is imported only where an environment of JAX is traced.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from perla.envs.protocol import Env, Observation, Spec, TimeStep
from perla.errors import UserError, nearest

if TYPE_CHECKING:
    from perla.types import PRNGKeyArray


@contextlib.contextmanager
def explain_errors(what: str, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Other people's mistakes, `but` some, as one line: what failed, where and why."""
    try:
        yield
    except UserError:
        raise
    except but:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "site-packages" not in frame.filename]
        place = (own or frames)[-1]
        text = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{what}: {type(error).__name__} at "
            f"{os.path.basename(place.filename)}:{place.lineno}: {text}"
        ) from None


def check_spec(id: str, spec: Any) -> None:
    """Raise `UserError` unless there can be a world, of JAX or of the host, with this `spec`."""
    if not isinstance(spec, Spec):
        raise UserError(f"{id}: spec is {describe_value(spec)}, not a perla.envs.protocol.Spec")
    if len(spec.actions) != spec.agents:
        raise UserError(
            f"{id}: spec.actions = {spec.actions}: {len(spec.actions)} entries, and "
            f"spec.agents = {spec.agents}"
        )
    for name, least in (("agents", 1), ("obs", 1), ("state", 1), ("limit", 1)):
        value = getattr(spec, name)
        if not (name == "limit" and value is None) and not (isinstance(value, int) and value > 0):
            raise UserError(f"{id}: spec.{name} = {value!r}: expected {least} or more")
    if min(spec.actions) < 1:
        raise UserError(f"{id}: spec.actions = {spec.actions}: every agent has at least 1")
    if spec.reward not in ("common", "individual"):
        raise nearest(str(spec.reward), ("common", "individual"), what=f"{id}: spec.reward")


def check_alive(gives: str, seen: Observation, spec: Spec) -> None:
    """Raise `UserError` unless there is an `alive` where the `spec` says so, and there alone."""
    if (seen.alive is not None) != spec.mortal:
        raise UserError(
            f"{gives} {'no ' if spec.mortal else ''}alive; spec.mortal is {spec.mortal}"
        )


def describe_value(value: Any) -> str:
    """What `value` is, in a few words."""
    if isinstance(value, (str, int, float)) or hasattr(value, "dtype"):
        return f"{value!r}"[:60]
    name = "None" if value is None else type(value).__name__
    return name if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


# --- Environments of JAX ------------------------------------------------------------------------


def check_traced(id: str, env: Env) -> None:
    """Raise `UserError` unless `env`, which is of JAX, gives what its valid `spec` says: shapes and
    types without computing any, the limit by playing one episode."""
    import jax
    import jax.numpy as jnp

    spec = env.spec
    key = jax.random.key(0)
    with explain_errors(f"{id}: reset fails"):
        begun = jax.eval_shape(env.reset, key)
    if not (isinstance(begun, tuple) and len(begun) == 2 and isinstance(begun[1], Observation)):
        raise UserError(f"{id}: reset returns {_a(begun)}, not (state, Observation)")
    state, observation = begun
    _check_observation(f"{id}: reset gives", observation, spec)
    shape = (spec.agents, spec.max_actions) if spec.continuous else (spec.agents,)
    action = jax.ShapeDtypeStruct(shape, jnp.float32 if spec.continuous else jnp.int32)
    with explain_errors(f"{id}: step fails"):
        made = jax.eval_shape(env.step, key, state, action)
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], TimeStep)):
        raise UserError(f"{id}: step returns {_a(made)}, not (state, TimeStep)")
    after, timestep = made
    _check_state(id, state, after)
    for name in ("observation", "final"):
        seen = getattr(timestep, name)
        if not isinstance(seen, Observation):
            raise UserError(f"{id}: step gives {_a(seen)} as {name}, not an Observation")
        _check_observation(f"{id}: step's {name} gives", seen, spec)
    gives = f"{id}: step gives"
    _check_array(gives, "reward", timestep.reward, (spec.agents,), np.float32, "agents")
    _check_array(gives, "terminated", timestep.terminated, (), np.bool_, "a scalar")
    _check_array(gives, "truncated", timestep.truncated, (), np.bool_, "a scalar")
    if timestep.won is not None:
        _check_array(gives, "won", timestep.won, (), np.float32, "a scalar")
    if spec.limit is not None:
        with explain_errors(f"{id}: an episode fails"):
            time, ended, cut = map(int, jax.jit(partial(_play, env, spec.limit))(key))
        if cut and time != spec.limit:
            raise UserError(
                f"{id}: an episode is truncated after {time} steps, and spec.limit is "
                f"{spec.limit}: it may be truncated there alone"
            )
        if not (cut or ended):
            raise UserError(
                f"{id}: an episode goes on after {time} steps, and spec.limit is {spec.limit}: it "
                "must be truncated there"
            )


def _play(env: Env, limit: int, key: PRNGKeyArray) -> tuple[Any, Any, Any]:
    """The steps of an episode of random actions, `limit` at most; whether it then is terminated,
    and whether truncated."""
    import jax
    import jax.numpy as jnp

    from perla.envs.wrappers import sample_actions

    state, seen = env.reset(key)

    def going(carry: Any) -> Any:
        time, terminated, truncated, *_ = carry
        return (time < limit) & ~terminated & ~truncated

    def step(carry: Any) -> Any:
        time, *_, state, seen = carry
        key_action, key_step = jax.random.split(jax.random.fold_in(key, time))
        state, timestep = env.step(
            key_step, state, sample_actions(key_action, env.spec, seen.avail)
        )
        return time + 1, timestep.terminated, timestep.truncated, state, timestep.observation

    start = jnp.int32(0), jnp.bool_(False), jnp.bool_(False), state, seen
    return jax.lax.while_loop(going, step, start)[:3]


def _check_observation(gives: str, seen: Observation, spec: Spec) -> None:
    agents, actions = spec.agents, spec.max_actions
    _check_array(gives, "obs", seen.obs, (agents, spec.obs), np.float32, "agents × obs")
    _check_array(gives, "state", seen.state, (spec.state,), np.float32, "state")
    _check_array(gives, "avail", seen.avail, (agents, actions), np.bool_, "agents × actions")
    check_alive(gives, seen, spec)
    if seen.alive is not None:
        _check_array(gives, "alive", seen.alive, (agents,), np.bool_, "agents")


def _check_array(
    gives: str, name: str, array: Any, shape: tuple[int, ...], dtype: Any, axes: str
) -> None:
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise UserError(f"{gives} {name} as {_a(array)}, not as an array")
    if array.shape != shape:
        raise UserError(f"{gives} {name} of shape {array.shape}; the spec says {shape} ({axes})")
    if array.dtype != dtype:
        raise UserError(f"{gives} {name} of {array.dtype}; it should be {np.dtype(dtype)}")


def _check_state(id: str, before: Any, after: Any) -> None:
    """States follow each other in loops, and are saved: they are alike, of plain arrays."""
    import jax

    first, then = str(jax.tree.structure(before)), str(jax.tree.structure(after))
    if first != then:
        raise UserError(f"{id}: step's state is built otherwise than reset's: {then}, not {first}")
    leaves = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in leaves:
        where = f"{id}: the state's leaf {jax.tree_util.keystr(path) or 'of its own'}"
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise UserError(
                f"{where} is {old.dtype}{list(old.shape)} after reset and "
                f"{new.dtype}{list(new.shape)} after step; it should stay the same"
            )
        if jax.dtypes.issubdtype(old.dtype, jax.dtypes.prng_key):
            raise UserError(
                f"{where} is a key, which no checkpoint can hold; keep jax.random.key_data of it"
            )


def _a(value: Any) -> str:
    shaped = hasattr(value, "shape") and hasattr(value, "dtype")
    return "an array" if shaped else describe_value(value)
