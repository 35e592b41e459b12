"""Results of other libraries' `reset` and `step`: containers are checked before they are read.

Every mistake is a `Fault` that names the method, what it returned, and what it should return.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from perla.envs.checks import explain_errors
from perla.envs.values import Fault, describe_value, to_flag, to_flags
from perla.errors import UserError

RESET = ("observations", "infos")
STEP = ("observations", "rewards", "terminations", "truncations", "infos")
ALL = "__all__"
"""Key of the flag of all agents together, as in RLlib."""


Result = TypeVar("Result")


def first_reset(id: str, reset: Callable[..., Result], **arguments: Any) -> Result:
    """The result of the first `reset` of an environment. Raises `UserError` if it takes no seed, if
    it fails, or if it returns anything but observations and infos."""
    with explain_errors(f"{id}: reset fails"):
        try:
            return reset(**arguments)
        except TypeError as error:
            if "'seed'" not in str(error):
                raise
            raise UserError(
                f"{id}: reset takes no seed; declare it as reset(self, seed=None, options=None)"
            ) from None


def unpack(method: str, result: Any, names: Sequence[str]) -> tuple[Any, ...]:
    """The values called `names` that `method` returned."""
    if isinstance(result, tuple) and len(result) == len(names):
        return result
    what = f"{len(result)} values" if isinstance(result, tuple) else describe_value(result)
    raise Fault(f"{method} returns {what}, expected ({', '.join(names)})")


def by_agent(name: str, value: Any, agents: Collection[Any]) -> Mapping[Any, Any]:
    """A dictionary with an entry for each of `agents`."""
    if not isinstance(value, Mapping):
        raise Fault(f"{name} are {describe_value(value)}, expected a dict with an entry per agent")
    for agent in agents:
        if agent not in value:
            raise Fault(f"{name} lack agent {agent!r}, expected an entry per agent")
    return value


def in_order(name: str, value: Any, agents: int) -> list[Any]:
    """A tuple, list or array with an entry for each agent, in order."""
    listed = isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.ndim > 0)
    if not listed:
        raise Fault(f"{name} are {describe_value(value)}, expected a tuple with one per agent")
    if len(value) != agents:
        raise Fault(f"{name} are {len(value)} for {agents} agents, expected one per agent")
    return list(value)


def info(name: str, value: Any) -> Mapping[Any, Any]:
    """An info, a dictionary that may be empty."""
    if not isinstance(value, Mapping):
        raise Fault(f"{name} is {describe_value(value)}, expected a dict, which may be empty")
    return value


def common_flag(name: str, value: Any, agents: int) -> bool:
    """The flag of an episode, given once, once for each agent, or as `__all__` in a dictionary.

    Raises `Fault` if it differs between agents or is no boolean.
    """
    if isinstance(value, Mapping):
        if ALL not in value:
            raise Fault(f"{name} is a dict without '{ALL}', the flag of the whole episode")
        return to_flag(f"{name}['{ALL}']", value[ALL])
    flags = to_flags(name, value)
    if flags.shape != (agents,):
        return to_flag(name, flags)
    if flags.any() != flags.all():
        raise Fault(f"the episode is {name} for some agents only, expected one end for all")
    return bool(flags.all())


def agents_flags(
    name: str, value: Any, agents: Collection[Any], staying: Collection[Any]
) -> dict[Any, bool]:
    """The flags of `agents` in a dictionary by agent, whose `__all__` sets those of all.

    Agents that have left may have no flag. Raises `Fault` if those that are `staying` have none and
    there is no `__all__`, and for flags that are no booleans.
    """
    flags = by_agent(name, value, () if isinstance(value, Mapping) and ALL in value else staying)
    if ALL in flags and to_flag(f"{name}['{ALL}']", flags[ALL]):
        return dict.fromkeys(agents, True)
    return {agent: to_flag(f"{name}[{agent!r}]", flags.get(agent, False)) for agent in agents}
