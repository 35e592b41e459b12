"""A user's own environment by the name of what makes it: `package.module:function`.

The module is looked for on the current directory first, then among the installed ones. What the
function returns says what kind of environment it is: one of perla's, of JAX or of the host, or
another library's, which is then wrapped. Before anything is trained on one of JAX, it is traced
(`perla.envs.checks`). Worker processes import this: no JAX.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from perla.envs import makers
from perla.envs.checks import check_spec, check_traced, describe_value, explain_errors
from perla.envs.protocol import Env, HostEnv
from perla.errors import UserError, nearest

MEMBERS = ("spec", "reset", "step", "render")
"""What an environment has: the protocol `perla.envs.protocol.Env`. The host's have `close`, too."""
BRIDGED = ("limit", "reward", "mortal", "state")
"""Options of the bridges to other libraries: PettingZoo's has all, Gymnasium's the first two."""


def make_env(id: str, families: Iterable[str], /, **options: Any) -> Env | HostEnv:
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
        with explain_errors(f"{id} fails"):
            made = function(**options)
    from perla.envs.bridges import smac

    # Whatever kind of environment there is, here it is told by what the function returned.
    skirmish = smac.has_interface(made)  # SMAClite's are Gymnasium's as well.
    zoo = not skirmish and _is(made, "pettingzoo", "ParallelEnv", "AECEnv")
    gymnasium = not skirmish and _is(made, "gymnasium", "Env")
    known = BRIDGED if zoo else BRIDGED[:2] if gymnasium else ()
    for name in ours:
        if name not in known:
            raise _unexpected(id, f"got an unexpected keyword argument {name!r}")
    rules = {"options": options}
    if skirmish:
        with explain_errors(f"{id}: get_env_info fails"):
            return smac.wrap(id, made, options)
    if zoo:
        from perla.envs.bridges import pettingzoo

        return pettingzoo.PettingZoo(id, pettingzoo.parallel(id, made), **ours, rules=rules)
    if gymnasium:
        from perla.envs.bridges import gym

        return gym.Gym(id, made, **ours, rules=rules)
    with explain_errors(f"{id}: spec fails"):
        missing = [name for name in MEMBERS if not hasattr(made, name)]
        if missing:
            raise UserError(
                f"{id} returns {describe_value(made)}, which is no environment: it lacks "
                f"{', '.join(missing)}"
            )
        check_spec(id, made.spec)
    if not isinstance(made, HostEnv):
        check_traced(id, made)
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
            with explain_errors(f"{name} cannot be imported", but=ModuleNotFoundError):
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
            f"{module_name}:{name} is {describe_value(function)}; name a function that returns an "
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
