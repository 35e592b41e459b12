"""A user's own environment by the name of what makes it: `package.module:function`.

The module is looked for on the current directory first, then among the installed ones. What the
function returns says what kind of environment it is: one of perla's, of JAX or of the host, or
another library's, which is then wrapped. Before anything is trained on one of JAX, it is traced
(`perla.envs.traced`). Worker processes import this: no JAX.
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

from perla.envs import makers
from perla.envs.protocol import Env, HostEnv, Observation, Spec
from perla.errors import UserError, nearest

MEMBERS = ("spec", "reset", "step", "render")
"""What an environment has: the protocol `perla.envs.protocol.Env`. The host's have `close`, too."""
BRIDGED = ("limit", "reward", "mortal", "state")
"""Options of the bridges to other libraries: PettingZoo's has all, Gymnasium's the first two."""


def make(id: str, families: Iterable[str], /, **options: Any) -> Env | HostEnv:
    """The environment that the function of `id`, `package.module:function`, returns.

    `options` are its arguments; those of `BRIDGED` that it does not take are for the bridge that
    wraps what it returns. `families` are the prefixes that are no module, for those who have
    mistyped one. Raises `UserError`, one line that says what to mend, where there is no such module
    or function, where it is no maker of environments (`perla.envs.makers`), where either fails, and
    where what comes of it is no environment or another than its `spec` says.
    """
    module_name, _, function_name = id.partition(":")
    with _current_directory():
        makers.check_module(id, module_name)
        module = _module(module_name, families)
        function = _function(module, module_name, function_name)
        makers.check_maker(id, function)
        taken = inspect.signature(function)
        free = any(one.kind is one.VAR_KEYWORD for one in taken.parameters.values())
        bridged = set() if free else set(options) & set(BRIDGED) - set(taken.parameters)
        ours = {name: options.pop(name) for name in bridged}
        try:
            taken.bind(**options)
        except TypeError as error:
            raise _unexpected(id, error) from None
        with told(f"{id} fails"):
            made = function(**options)
    from perla.envs import smac

    # Whatever kind of environment there is, here it is told by what the function returned.
    skirmish = smac.like(made)  # SMAClite's are Gymnasium's as well.
    zoo = not skirmish and _is(made, "pettingzoo", "ParallelEnv", "AECEnv")
    gymnasium = not skirmish and _is(made, "gymnasium", "Env")
    known = BRIDGED if zoo else BRIDGED[:2] if gymnasium else ()
    for name in ours:
        if name not in known:
            raise _unexpected(id, f"got an unexpected keyword argument {name!r}")
    rules = {"options": options}
    if skirmish:
        with told(f"{id}: get_env_info fails"):
            return smac.own(id, made, options)
    if zoo:
        from perla.envs import pettingzoo

        return pettingzoo.PettingZoo(id, pettingzoo.parallel(id, made), **ours, rules=rules)
    if gymnasium:
        from perla.envs import gym

        return gym.Gym(id, made, **ours, rules=rules)
    with told(f"{id}: spec fails"):
        missing = [name for name in MEMBERS if not hasattr(made, name)]
        if missing:
            raise UserError(
                f"{id} returns {described(made)}, which is no environment: it lacks "
                f"{', '.join(missing)}"
            )
        check_spec(id, made.spec)
    if not isinstance(made, HostEnv):
        from perla.envs.traced import check

        check(id, made)
    return made


def _unexpected(id: str, what: object) -> UserError:
    return UserError(f"{id}: {what}; --env-option gives its arguments by name")


def _is(made: Any, package: str, *kinds: str) -> bool:
    """Whether `made` is of one of the `kinds` of a `package`, which then has been imported."""
    module = sys.modules.get(package)
    return module is not None and any(isinstance(made, getattr(module, kind)) for kind in kinds)


def _module(name: str, families: Iterable[str]) -> Any:
    if all(part.isidentifier() for part in name.split(".")):
        try:
            with told(f"{name} cannot be imported", but=ModuleNotFoundError):
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
            f"{module_name}:{name} is {described(function)}; name a function that returns an "
            "environment"
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
def told(what: str, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
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
        raise UserError(f"{id}: spec is {described(spec)}, not a perla.envs.protocol.Spec")
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


def described(value: Any) -> str:
    """What `value` is, in a few words."""
    if isinstance(value, (str, int, float)) or hasattr(value, "dtype"):
        return f"{value!r}"[:60]
    name = "None" if value is None else type(value).__name__
    return name if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
