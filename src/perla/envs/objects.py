"""Environments that Python code hands over: objects, and functions that make them.

A run is data, and an object is not. So the run has an id that names the object, `object:NAME`, and
whoever goes on with the run hands the object over again: no file brings one back. A function that
another process can import has its usual id, `module:function`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from perla.envs import custom, makers
from perla.envs.registry import FAMILIES, OBJECT, is_object
from perla.envs.values import describe_value
from perla.errors import UserError


def identify(env: Any) -> str:
    """The id of `env`: itself if it is one, `module:function` for a function or class at the top
    level of a module that can be imported, and `object:NAME` for all else.

    Raises `UserError` unless `env` is an id, an environment or a callable.
    """
    if isinstance(env, str):
        return env
    if not (callable(env) or is_environment(env)):
        raise UserError(
            f"env = {describe_value(env)}: expected an id, an environment (with "
            f"{' and '.join(makers.MEMBERS)}), or a function that makes one"
        )
    if is_environment(env):
        return f"{OBJECT}:{type(env).__name__}"
    module, name = getattr(env, "__module__", None), getattr(env, "__qualname__", None)
    if _importable(env, module, name):
        return f"{module}:{name}"
    word = str(getattr(makers.unwrap(env), "__name__", type(env).__name__))
    return f"{OBJECT}:{re.sub(r'[^0-9A-Za-z_]+', '', word)}"


def factory(id: str, env: Any, options: Mapping[str, Any]) -> Callable[[], Any] | None:
    """A function that makes the environment `env` of the run with this `id`; None if the id alone
    says how. cloudpickle can send it to worker processes."""
    if id == identify(env) and not is_object(id):
        return None
    if is_environment(env):
        return partial(custom.adopt, id, env, **options)
    return partial(custom.call, id, env, **options)


def is_environment(env: Any) -> bool:
    """True for an object that is stepped, and not called."""
    return not (inspect.isclass(env) or inspect.isroutine(env)) and all(
        hasattr(env, name) for name in makers.MEMBERS
    )


def _importable(env: Any, module: Any, name: Any) -> bool:
    """True if another process finds `env` under the `name` in the `module`."""
    if not (isinstance(module, str) and isinstance(name, str)) or "." in name:
        return False
    if module in ("__main__", "__mp_main__") or module in FAMILIES or makers.standard(module):
        return False
    home = sys.modules.get(module)
    return getattr(home, "__file__", None) is not None and getattr(home, name, None) is env
