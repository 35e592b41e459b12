"""Parts that several learners are put together from."""

from __future__ import annotations

from perla.config import Config, Count, Fraction, Groups, Positive
from perla.errors import UserError


class Soft(Config, tag="soft", frozen=True):
    """The target is a moving average of what is learnt, after every update."""

    target_update_tau: Fraction = 0.01
    """Weight of the newest."""


class Hard(Config, tag="hard", frozen=True):
    """The target is a copy of what is learnt, renewed now and then."""

    target_update_interval: Count = 200
    """Updates between copies."""


class Squared(Config, tag="squared", frozen=True):
    """Squared error."""


class Huber(Config, tag="huber", frozen=True):
    """Squared error near zero, absolute error beyond."""

    huber_delta: Positive = 10.0
    """Where the two meet."""


class Adam(Config, tag="adam", frozen=True):
    """Adam."""

    eps: Positive = 1e-8
    """Added to the root of the second moment."""


class RMSProp(Config, tag="rmsprop", frozen=True):
    """RMSProp."""

    decay: Fraction = 0.99
    """Decay of the second moment."""
    momentum: Fraction = 0.0
    """Decay of the first moment; 0 is none."""
    rms_eps: Positive = 1e-5
    """Added to the root of the second moment."""


def one_each(agents: int) -> Groups:
    """A group for every agent, which then shares with nobody."""
    return tuple(range(agents))


def check_groups(sharing: str, groups: Groups) -> None:
    """Raise `UserError` for groups of agents that share nothing, and for one that nobody is in."""
    if groups is None:
        return
    if sharing == "separate":
        raise UserError(
            f"parameter_groups = {format_groups(groups)} with parameter_sharing = separate: those of a group share; leave one "
            "of the two out"
        )
    missing = set(range(len(set(groups)))) - set(groups)
    if missing:
        raise UserError(
            f"parameter_groups = {format_groups(groups)}: nobody is in group {min(missing)}; number them from 0 on"
        )


def check_agents(groups: Groups, agents: int, world: str) -> None:
    """Raise `UserError` unless every agent of the world has its group."""
    if groups is not None and len(groups) != agents:
        raise UserError(
            f"parameter_groups = {format_groups(groups)}: is of {len(groups)} agents, and {world} has {agents}; give "
            "one number for each, in the world's order"
        )


def format_groups(groups: tuple[int, ...]) -> str:
    """Groups as they are written on the command line."""
    return ",".join(map(str, groups))


def length(horizon: int | None, limit: int | None) -> int:
    """Steps of every copy between two updates; whole episodes are padded to the limit.

    Raises `UserError` where whole episodes are asked for and have no limit.
    """
    steps = horizon or limit
    if steps is None:
        raise UserError("rollout_length = none: the episodes of this world have no limit")
    return steps


def check_buffer(buffer: int, copies: int) -> None:
    """Raise `UserError` where a replay of so many sequences cannot take what is collected at a
    time, a sequence from each copy."""
    if buffer < copies:
        raise UserError(
            f"buffer_size = {buffer}: must hold what the {copies} copies collect at a time"
        )
