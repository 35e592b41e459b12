"""Settings and checks that several learners share."""

from __future__ import annotations

from perla.config import Config, Count, Fraction, Groups, Positive
from perla.errors import UserError


class Soft(Config, tag="soft", frozen=True):
    """A target network that is a moving average of the learnt one, after every update."""

    target_update_tau: Fraction = 0.01
    """Weight of the newest parameters."""


class Hard(Config, tag="hard", frozen=True):
    """A target network that is a periodic copy of the learnt one."""

    target_update_interval: Count = 200
    """Updates between two copies of the parameters."""


class Squared(Config, tag="squared", frozen=True):
    """Squared error."""


class Huber(Config, tag="huber", frozen=True):
    """Huber loss: squared error near zero, absolute error beyond."""

    huber_delta: Positive = 10.0
    """The error beyond which the loss is linear."""


class Adam(Config, tag="adam", frozen=True):
    """Adam."""

    eps: Positive = 1e-8
    """Added to the root of the second moment."""


class RMSProp(Config, tag="rmsprop", frozen=True):
    """RMSProp."""

    decay: Fraction = 0.99
    """Decay of the second moment."""
    momentum: Fraction = 0.0
    """Decay of the first moment; 0: no momentum."""
    rms_eps: Positive = 1e-5
    """Added to the root of the second moment."""


def one_each(agents: int) -> Groups:
    """A group of its own for every agent: separate parameters."""
    return tuple(range(agents))


def check_groups(sharing: str, groups: Groups) -> None:
    """Raise `UserError` for groups with `sharing` separate, and for an empty group."""
    if groups is None:
        return
    if sharing == "separate":
        raise UserError(
            f"parameter_groups = {format_groups(groups)} with parameter_sharing = separate: agents "
            "of a group share parameters; leave one of the two out"
        )
    missing = set(range(len(set(groups)))) - set(groups)
    if missing:
        raise UserError(
            f"parameter_groups = {format_groups(groups)}: nobody is in group {min(missing)}; "
            "number the groups from 0 on"
        )


def check_agents(groups: Groups, agents: int, env: str) -> None:
    """Raise `UserError` unless `groups` has one entry for each of the environment's `agents`."""
    if groups is not None and len(groups) != agents:
        raise UserError(
            f"parameter_groups = {format_groups(groups)}: is of {len(groups)} agents, and {env} "
            f"has {agents}; give one number per agent, in the environment's order"
        )


def format_groups(groups: tuple[int, ...]) -> str:
    """`groups` as on the command line: `0,0,1`."""
    return ",".join(map(str, groups))


def length(rollout_length: int | None, limit: int | None) -> int:
    """Steps of a rollout; `limit` is the environment's, to which whole episodes are padded.

    Raises `UserError` for whole episodes without a limit.
    """
    steps = rollout_length or limit
    if steps is None:
        raise UserError("rollout_length = none: the episodes of this environment have no limit")
    return steps


def check_buffer(buffer_size: int, num_envs: int) -> None:
    """Raise `UserError` if the buffer is smaller than one rollout: a sequence per environment."""
    if buffer_size < num_envs:
        raise UserError(
            f"buffer_size = {buffer_size}: must hold a rollout of {num_envs} environments, which "
            f"is {num_envs} sequences"
        )
