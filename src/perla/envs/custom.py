"""A user's own environment, made by `package.module:function`.

The module is searched for in the current directory first, then among the installed ones. The
function may return a perla `Env` or `HostEnv`, or another library's environment, which is wrapped.
An `Env` is traced and checked against its spec before training (`perla.envs.checks`). Worker
processes import this module, so it does not import JAX.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from perla.envs import makers
from perla.envs import options as env_options
from perla.envs.checks import check_spec, check_traced, explain_errors
from perla.envs.options import OF_GYMNASIUM, OF_PETTINGZOO
from perla.envs.protocol import Env, HostEnv
from perla.envs.values import describe_value
from perla.errors import UserError, closest, nearest

MEMBERS = ("spec", "reset", "step", "render")
"""Members of an environment (`perla.envs.protocol.Env`); a `HostEnv` has `close`, too."""
GYMNASIUM_NAME = re.compile(r"-v\d+$")
"""End of the names in Gymnasium's registry, which no function can have."""


def make_env(id: str, families: Iterable[str], /, **options: Any) -> Env | HostEnv:
    """The environment returned by the function of `id`, `package.module:function`.

    `options` are its arguments; those of `OF_PETTINGZOO` that it does not take go to the bridge
    that wraps its environment. `families` are the known prefixes, suggested if an id is mistyped.
    Raises `UserError`, in one line, if the module or function does not exist or raises, if the
    function cannot make an environment (`perla.envs.makers`), or if the result is no environment or
    breaks the contract of its `spec`.
    """
    module_name, _, function_name = id.partition(":")
    families = list(families)
    if GYMNASIUM_NAME.search(function_name) and closest(module_name, families) is None:
        raise UserError(f"{id} is an id of Gymnasium, as in EPyMARL; here it is gym:{id}")
    with makers.current_directory():
        makers.check_module(id, module_name)
        module = _module(module_name, families)
        function = _function(module, module_name, function_name)
        makers.check_maker(id, function)
        return call(id, function, **options)


def call(id: str, function: Callable[..., Any], /, **options: Any) -> Env | HostEnv:
    """The environment that `function` returns for `options`, wrapped and checked as by `make_env`.
    Raises `UserError` as it does."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise UserError(f"{id}: {describe_value(function)} does not say what it takes") from None
    any_keyword = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    taken = set(options) if any_keyword else set(signature.parameters)
    bridge_options = {
        name: options.pop(name) for name in OF_PETTINGZOO if name in options.keys() - taken
    }
    try:
        signature.bind(**options)
    except TypeError as error:
        raise _unexpected(id, error) from None
    arguments = env_options.fit(id, function, options)
    with explain_errors(f"{id} fails"):
        env = function(**arguments)
    return _wrap(id, env, options, bridge_options)


def adopt(id: str, env: Any, /, **options: Any) -> Env | HostEnv:
    """The environment object `env`, wrapped and checked as by `make_env`; `options` are those of
    `OF_PETTINGZOO`.

    One outside JAX has a state of its own, so it is copied: several can be stepped then. Raises
    `UserError` if it cannot be.
    """
    if not isinstance(env, Env) or isinstance(env, HostEnv):
        with explain_errors(f"{id} cannot be copied; hand over a function that makes it"):
            env = copy.deepcopy(env)
    bridge_options = {name: options.pop(name) for name in OF_PETTINGZOO if name in options}
    for name in options:
        raise _unexpected(id, f"an environment object takes no option {name!r}")
    return _wrap(id, env, options, bridge_options)


def _wrap(
    id: str, env: Any, options: dict[str, Any], bridge_options: dict[str, Any]
) -> Env | HostEnv:
    """Recognise the kind of `env`; wrap it if it is another library's, else check it."""
    from perla.envs.bridges import rllib, smac

    # SMAClite's and RLlib's environments are Gymnasium's as well.
    is_smac = smac.has_interface(env)
    is_pettingzoo = not is_smac and _is_instance(env, "pettingzoo", "ParallelEnv", "AECEnv")
    is_rllib = not is_smac and not is_pettingzoo and rllib.has_interface(env)
    is_gymnasium = not is_smac and not is_rllib and _is_instance(env, "gymnasium", "Env")
    by_agent = is_pettingzoo or is_rllib
    known = OF_PETTINGZOO if by_agent else OF_GYMNASIUM if is_gymnasium else ()
    for name in bridge_options:
        if name not in known:
            raise _unexpected(id, f"got an unexpected keyword argument {name!r}")
    rules = {"options": options}
    if is_smac:
        with explain_errors(f"{id}: get_env_info fails"):
            return smac.wrap(id, env, options)
    if is_pettingzoo:
        from perla.envs.bridges import pettingzoo

        parallel_env = pettingzoo.parallel(id, env)
        return pettingzoo.PettingZoo(id, parallel_env, **bridge_options, rules=rules)
    if is_rllib:
        return rllib.wrap(id, env, options, **bridge_options)
    if is_gymnasium:
        from perla.envs.bridges import gym

        return gym.Gym(id, env, **bridge_options, rules=rules)
    with explain_errors(f"{id}: spec fails"):
        missing = [name for name in MEMBERS if not hasattr(env, name)]
        if missing:
            raise UserError(
                f"{id} returns {describe_value(env)}, which is no environment: it lacks "
                f"{', '.join(missing)}"
            )
        check_spec(id, env.spec)
    if not isinstance(env, HostEnv):
        check_traced(id, env)
    return env


def _unexpected(id: str, message: object) -> UserError:
    return UserError(f"{id}: {message}; --env-option gives its arguments by name")


def _is_instance(env: Any, package: str, *kinds: str) -> bool:
    """True if `env` is an instance of one of the classes `kinds` of an imported `package`."""
    module = sys.modules.get(package)
    return module is not None and any(isinstance(env, getattr(module, kind)) for kind in kinds)


def _module(name: str, families: Iterable[str]) -> Any:
    if all(part.isidentifier() for part in name.split(".")):
        try:
            with explain_errors(f"{name} cannot be imported", but=ModuleNotFoundError):
                return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or name
            if name != missing and not name.startswith(f"{missing}."):
                raise UserError(f"{name} cannot be imported: it needs {missing}") from None
    if "." in name:
        above = name.rpartition(".")[0]
        known = [f"{above}.{module}" for module in _modules_in(above)] or _modules_here()
        if known:
            raise nearest(name, known, what="module")
        raise UserError(f"no module {name!r} in the current directory or among those installed")
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
