"""Settings that several learners share: losses, optimisers, target networks, parameter groups."""

from __future__ import annotations

from perla.config import Config, Count, Fraction, Groups, Positive
from perla.errors import UserError


class Soft(Config, tag="soft", frozen=True):
    """Target network as a moving average of the online network, updated in every gradient step."""

    target_update_tau: Fraction = 0.01
    """Weight of the online network in the average."""


class Hard(Config, tag="hard", frozen=True):
    """Target network as a periodic copy of the online network."""

    target_update_interval: Count = 200
    """Gradient steps between copies."""


class Squared(Config, tag="squared", frozen=True):
    """Squared error."""


class Huber(Config, tag="huber", frozen=True):
    """Huber loss: squared error near zero, absolute error beyond."""

    huber_delta: Positive = 10.0
    """Absolute error at which the loss becomes linear."""


class Adam(Config, tag="adam", frozen=True):
    """Adam."""

    eps: Positive = 1e-8
    """Added to the root of the second moment."""


class RAdam(Config, tag="radam", frozen=True):
    """Rectified Adam: Adam that warms up until its second moment is certain (Liu et al., 2020)."""

    radam_eps: Positive = 1e-8
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
    """A parameter group for every agent, so that no parameters are shared."""
    return tuple(range(agents))


def check_groups(sharing: str, groups: Groups) -> None:
    """Raise `UserError` for groups of agents with separate parameters, and for an empty group."""
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
            f"parameter_groups = {format_groups(groups)}: group {min(missing)} is empty; number "
            "the groups from 0"
        )


def check_agents(groups: Groups, agents: int, env: str) -> None:
    """Raise `UserError` unless every agent of the environment `env` has a group."""
    if groups is not None and len(groups) != agents:
        raise UserError(
            f"parameter_groups = {format_groups(groups)}: {len(groups)} agents, but {env} has "
            f"{agents}; give one number for each agent, in the environment's order"
        )


def format_groups(groups: tuple[int, ...]) -> str:
    """Parameter groups as on the command line."""
    return ",".join(map(str, groups))


def length(rollout_length: int | None, limit: int | None) -> int:
    """Steps of every environment between two updates; whole episodes are padded to `limit`.

    Raises `UserError` for whole episodes without a limit.
    """
    steps = rollout_length or limit
    if steps is None:
        raise UserError("rollout_length = none: the episodes of this environment have no limit")
    return steps


def check_buffer(buffer_size: int, num_envs: int) -> None:
    """Raise `UserError` for a replay buffer too small for one rollout, which is one sequence from
    each environment."""
    if buffer_size < num_envs:
        raise UserError(
            f"buffer_size = {buffer_size}: must hold the {num_envs} sequences of a rollout, one "
            "from each environment"
        )
