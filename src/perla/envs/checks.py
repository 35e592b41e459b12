"""Checks of a user's environment, with error messages of one line.

Worker processes import this module: it imports JAX only to trace an environment in JAX.
"""

from __future__ import annotations

import contextlib
import math
import os
import traceback
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from perla.envs.protocol import Env, Observation, Spec, TimeStep
from perla.envs.values import Fault, describe_value
from perla.errors import UserError, nearest

if TYPE_CHECKING:
    from perla.types import PRNGKeyArray


@contextlib.contextmanager
def explain_errors(what: str, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Turn exceptions of a user's code, except `but`, into a `UserError` that says what failed,
    where and why; a `Fault` says itself what is wrong."""
    try:
        yield
    except UserError:
        raise
    except but:
        raise
    except Fault as fault:
        raise UserError(f"{what}: {fault}") from None
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
    """Raise `UserError` unless `spec` is a valid `Spec`, for an `Env` or a `HostEnv`."""
    if not isinstance(spec, Spec):
        raise UserError(f"{id}: spec is {describe_value(spec)}, not a perla.envs.protocol.Spec")
    if len(spec.actions) != spec.agents:
        raise UserError(
            f"{id}: spec.actions = {spec.actions}: {len(spec.actions)} entries, but "
            f"spec.agents = {spec.agents}"
        )
    for name, least in (("agents", 1), ("obs", 1), ("state", 1), ("limit", 1)):
        value = getattr(spec, name)
        if not (name == "limit" and value is None) and not (isinstance(value, int) and value > 0):
            raise UserError(f"{id}: spec.{name} = {value!r}: expected {least} or more")
    for name, size in (("image", spec.obs), ("state_image", spec.state)):
        check_image(f"{id}: spec.{name}", getattr(spec, name), size)
    if min(spec.actions) < 1:
        raise UserError(f"{id}: spec.actions = {spec.actions}: every agent needs at least 1")
    if spec.reward not in ("common", "individual"):
        raise nearest(str(spec.reward), ("common", "individual"), what=f"{id}: spec.reward")


def check_image(name: str, shape: Any, size: int) -> None:
    """Raise `UserError` unless `shape` is that of pictures which fit into `size` features."""
    if shape is None:
        return
    whole = isinstance(shape, tuple) and all(isinstance(n, int) and n > 0 for n in shape)
    if not whole or len(shape) not in (3, 4):
        raise UserError(
            f"{name} = {shape!r}: expected (height, width, channels), or with the number of "
            "pictures in front"
        )
    if math.prod(shape) > size:
        raise UserError(f"{name} = {shape}: has {math.prod(shape)} numbers, and there are {size}")


def check_alive(gives: str, observation: Observation, spec: Spec) -> None:
    """Raise `UserError` unless `alive` is set exactly if `spec.mortal` is true."""
    if (observation.alive is not None) != spec.mortal:
        raise UserError(
            f"{gives} {'no ' if spec.mortal else ''}alive; spec.mortal is {spec.mortal}"
        )


# --- Environments in JAX ------------------------------------------------------------------------


def check_traced(id: str, env: Env) -> None:
    """Raise `UserError` unless `env`, an environment in JAX with a valid `spec`, conforms to it.

    Shapes and types are traced without computing anything; the limit is checked in one episode.
    """
    import jax
    import jax.numpy as jnp

    spec = env.spec
    key = jax.random.key(0)
    with explain_errors(f"{id}: reset fails"):
        result = jax.eval_shape(env.reset, key)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Observation)):
        raise UserError(f"{id}: reset returns {_describe(result)}, not (state, Observation)")
    state, observation = result
    _check_observation(f"{id}: reset gives", observation, spec)
    shape = (spec.agents, spec.max_actions) if spec.continuous else (spec.agents,)
    action = jax.ShapeDtypeStruct(shape, jnp.float32 if spec.continuous else jnp.int32)
    with explain_errors(f"{id}: step fails"):
        result = jax.eval_shape(env.step, key, state, action)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], TimeStep)):
        raise UserError(f"{id}: step returns {_describe(result)}, not (state, TimeStep)")
    after, timestep = result
    _check_state(id, state, after)
    for name in ("observation", "final"):
        value = getattr(timestep, name)
        if not isinstance(value, Observation):
            raise UserError(f"{id}: step gives {_describe(value)} as {name}, not an Observation")
        _check_observation(f"{id}: step's {name} gives", value, spec)
    gives = f"{id}: step gives"
    _check_array(gives, "reward", timestep.reward, (spec.agents,), np.float32, "agents")
    _check_array(gives, "terminated", timestep.terminated, (), np.bool_, "a scalar")
    _check_array(gives, "truncated", timestep.truncated, (), np.bool_, "a scalar")
    if timestep.won is not None:
        _check_array(gives, "won", timestep.won, (), np.float32, "a scalar")
    if spec.limit is not None:
        _check_limit(id, env, spec.limit, key)


def _check_limit(id: str, env: Env, limit: int, key: PRNGKeyArray) -> None:
    import jax

    with explain_errors(f"{id}: an episode fails"):
        time, terminated, truncated = map(int, jax.jit(partial(_play, env, limit))(key))
    if truncated and time != limit and not env.spec.early_truncation:
        raise UserError(
            f"{id}: an episode is truncated after {time} steps of {limit}, and "
            "spec.early_truncation is False, which promises that none is; leave it out"
        )
    if not (truncated or terminated):
        raise UserError(
            f"{id}: an episode goes on after {time} steps, and spec.limit is {limit}: it must be "
            "truncated at the limit"
        )


def _play(env: Env, limit: int, key: PRNGKeyArray) -> tuple[Any, Any, Any]:
    """Play at most `limit` steps of an episode with random actions: the number of steps, and
    whether the episode is then terminated or truncated."""
    import jax
    import jax.numpy as jnp

    from perla.envs.wrappers import sample_actions

    state, observation = env.reset(key)

    def running(carry: Any) -> Any:
        time, terminated, truncated, *_ = carry
        return (time < limit) & ~terminated & ~truncated

    def step(carry: Any) -> Any:
        time, *_, state, observation = carry
        key_action, key_step = jax.random.split(jax.random.fold_in(key, time))
        state, timestep = env.step(
            key_step, state, sample_actions(key_action, env.spec, observation.avail)
        )
        return time + 1, timestep.terminated, timestep.truncated, state, timestep.observation

    start = jnp.int32(0), jnp.bool_(False), jnp.bool_(False), state, observation
    return jax.lax.while_loop(running, step, start)[:3]


def _check_observation(gives: str, observation: Observation, spec: Spec) -> None:
    agents, actions = spec.agents, spec.max_actions
    _check_array(gives, "obs", observation.obs, (agents, spec.obs), np.float32, "agents × obs")
    _check_array(gives, "state", observation.state, (spec.state,), np.float32, "state")
    _check_array(gives, "avail", observation.avail, (agents, actions), np.bool_, "agents × actions")
    check_alive(gives, observation, spec)
    if observation.alive is not None:
        _check_array(gives, "alive", observation.alive, (agents,), np.bool_, "agents")


def _check_array(
    gives: str, name: str, array: Any, shape: tuple[int, ...], dtype: Any, axes: str
) -> None:
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise UserError(f"{gives} {name} as {_describe(array)}, not as an array")
    if array.shape != shape:
        raise UserError(f"{gives} {name} of shape {array.shape}; the spec says {shape} ({axes})")
    if array.dtype != dtype:
        raise UserError(f"{gives} {name} of {array.dtype}; it should be {np.dtype(dtype)}")


def _check_state(id: str, before: Any, after: Any) -> None:
    """Raise `UserError` unless `step` keeps the state's structure, shapes and types, which compiled
    loops need, and all its leaves are plain arrays, which checkpoints need."""
    import jax

    first, then = str(jax.tree.structure(before)), str(jax.tree.structure(after))
    if first != then:
        raise UserError(
            f"{id}: step's state differs in structure from reset's: {then}, not {first}"
        )
    leaves = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in leaves:
        where = f"{id}: the state's leaf {jax.tree_util.keystr(path) or '(the state itself)'}"
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise UserError(
                f"{where} is {old.dtype}{list(old.shape)} after reset and "
                f"{new.dtype}{list(new.shape)} after step; it should stay the same"
            )
        if jax.dtypes.issubdtype(old.dtype, jax.dtypes.prng_key):
            raise UserError(
                f"{where} is a key, which no checkpoint can hold; keep jax.random.key_data of it"
            )


def _describe(value: Any) -> str:
    shaped = hasattr(value, "shape") and hasattr(value, "dtype")
    return "an array" if shaped else describe_value(value)
