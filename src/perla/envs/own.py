"""A user's own environment by the name of what makes it: `package.module:function`.

The module is looked for on the current directory first, then among the installed ones. What the
function returns says what kind of environment it is. Before anything is trained on it, its `spec`
is held against what `reset` and `step` really give, without computing either.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from perla.envs import smac
from perla.envs.protocol import Env, HostEnv, Observation, Spec, TimeStep
from perla.errors import UserError, nearest
from perla.types import Array

MEMBERS = ("spec", "reset", "step", "render")
"""What an environment has: the protocol `perla.envs.protocol.Env`."""


def make(id: str, families: Iterable[str], **options: Any) -> Env | HostEnv:
    """The environment that the function of `id`, `package.module:function`, returns.

    `options` are its arguments. `families` are the prefixes that are no module, for those who have
    mistyped one. Raises `UserError`, one line that says what to mend, where there is no such module
    or function, where either fails, and where what comes of it is no environment or another than
    its `spec` says.
    """
    module_name, _, function_name = id.partition(":")
    with _current_directory():
        module = _module(module_name, families)
        function = _function(module, module_name, function_name)
        try:
            inspect.signature(function).bind(**options)
        except TypeError as error:
            raise UserError(f"{id}: {error}; --env-option gives its arguments by name") from None
        with _told(f"{id} fails"):
            made = function(**options)
    # Whatever kind of environment there is, here it is told by what the function returned.
    if smac.like(made):
        with _told(f"{id}: get_env_info fails"):
            return smac.own(id, made, options)
    if isinstance(made, HostEnv):
        return made
    if not isinstance(made, Env):
        missing = [name for name in MEMBERS if not hasattr(made, name)]
        raise UserError(
            f"{id} returns {_a(made)}, which is no environment: it lacks {', '.join(missing)}"
        )
    check(id, made)
    return made


def check(id: str, env: Env) -> None:
    """Raise `UserError` unless `env` gives what its `spec` says, in shape and type."""
    with _told(f"{id}: spec fails"):
        spec = env.spec
    _check_spec(id, spec)
    key = jax.random.key(0)
    with _told(f"{id}: reset fails"):
        begun = jax.eval_shape(env.reset, key)
    if not (isinstance(begun, tuple) and len(begun) == 2 and isinstance(begun[1], Observation)):
        raise UserError(f"{id}: reset returns {_a(begun)}, not (state, Observation)")
    state, observation = begun
    _check_observation(f"{id}: reset gives", observation, spec)
    shape = (spec.agents, spec.max_actions) if spec.continuous else (spec.agents,)
    action = jax.ShapeDtypeStruct(shape, jnp.float32 if spec.continuous else jnp.int32)
    with _told(f"{id}: step fails"):
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
    _check_array(gives, "reward", timestep.reward, (spec.agents,), jnp.float32, "agents")
    _check_array(gives, "terminated", timestep.terminated, (), jnp.bool_, "a scalar")
    _check_array(gives, "truncated", timestep.truncated, (), jnp.bool_, "a scalar")
    if timestep.won is not None:
        _check_array(gives, "won", timestep.won, (), jnp.float32, "a scalar")


def _check_spec(id: str, spec: Any) -> None:
    if not isinstance(spec, Spec):
        raise UserError(f"{id}: spec is {_a(spec)}, not a perla.envs.protocol.Spec")
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


def _check_observation(gives: str, seen: Observation, spec: Spec) -> None:
    agents, actions = spec.agents, spec.max_actions
    _check_array(gives, "obs", seen.obs, (agents, spec.obs), jnp.float32, "agents × obs")
    _check_array(gives, "state", seen.state, (spec.state,), jnp.float32, "state")
    _check_array(gives, "avail", seen.avail, (agents, actions), jnp.bool_, "agents × actions")
    if (seen.alive is not None) != spec.mortal:
        raise UserError(
            f"{gives} {'no ' if spec.mortal else ''}alive; spec.mortal is {spec.mortal}"
        )
    if seen.alive is not None:
        _check_array(gives, "alive", seen.alive, (agents,), jnp.bool_, "agents")


def _check_array(
    gives: str, name: str, array: Any, shape: tuple[int, ...], dtype: Any, axes: str
) -> None:
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise UserError(f"{gives} {name} as {_a(array)}, not as an array")
    if array.shape != shape:
        raise UserError(f"{gives} {name} of shape {array.shape}; the spec says {shape} ({axes})")
    if array.dtype != dtype:
        raise UserError(f"{gives} {name} of {array.dtype}; it should be {jnp.dtype(dtype)}")


def _check_state(id: str, before: Any, after: Any) -> None:
    """States follow each other in loops, and are saved: they are alike, of plain arrays."""
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
        if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            raise UserError(
                f"{where} is a key, which no checkpoint can hold; keep jax.random.key_data of it"
            )


def _module(name: str, families: Iterable[str]) -> Any:
    if all(part.isidentifier() for part in name.split(".")):
        try:
            with _told(f"{name} cannot be imported", but=ModuleNotFoundError):
                return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or name
            if name != missing and not name.startswith(f"{missing}."):
                raise UserError(f"{name} cannot be imported: it needs {missing}") from None
    families = list(families)
    if "." in name:
        above = name.rpartition(".")[0]
        found = [f"{above}.{module}" for module in _modules_in(above)] or _modules_here()
        if found:
            raise nearest(name, found, what="module")
        raise UserError(f"no module {name!r} on the current directory or among those installed")
    raise nearest(name, [*families, *_modules_here()], what="environment family or module")


def _modules_here() -> list[str]:
    return [module.name for module in pkgutil.iter_modules([os.getcwd()])]


def _modules_in(package: str) -> list[str]:
    folder = getattr(sys.modules.get(package), "__path__", [])
    return [module.name for module in pkgutil.iter_modules(folder)]


def _function(module: Any, module_name: str, name: str) -> Callable[..., Any]:
    if not hasattr(module, name):
        known = [
            other
            for other, value in vars(module).items()
            if callable(value) and not other.startswith("_")
        ]
        raise nearest(name, known, what=f"function of {module_name}")
    function = getattr(module, name)
    if not callable(function):
        raise UserError(
            f"{module_name}:{name} is {_a(function)}; name a function that returns an environment"
        )
    return function


@contextlib.contextmanager
def _current_directory() -> Iterator[None]:
    """Modules of the current directory can be imported, as they can in `python -m`."""
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)


@contextlib.contextmanager
def _told(what: str, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
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


def _a(value: Any) -> str:
    if isinstance(value, jax.ShapeDtypeStruct):  # What became of an array, or of a number.
        return "an array"
    return f"{value!r}"[:60] if isinstance(value, (str, int, float, Array)) else _kind(value)


def _kind(value: Any) -> str:
    name = "None" if value is None else type(value).__name__
    return name if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
