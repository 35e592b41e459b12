"""The state of the actor-critic learner, and of its schedules."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import optax

from perla.algos.normalise import RunningMeanStd
from perla.algos.values import Estimate, MarginalSchedule
from perla.nets.actors import Actor
from perla.nets.critics import AnyCritic
from perla.types import Array, Float, Int


class Learner(eqx.Module):
    """The state of the learner."""

    actor: Actor
    critic: AnyCritic
    target: AnyCritic
    """The target critic; the critic itself where there is none."""
    actor_optimiser: optax.OptState
    critic_optimiser: optax.OptState
    critic_hidden_state: Float[Array, "env agent hidden"]
    """The critic's hidden state before the next step."""
    rewards: RunningMeanStd
    targets: RunningMeanStd
    updates: Int[Array, ""]
    candidate: Int[Array, ""]
    """Index into the estimator's candidate numbers of samples, for num_samples `auto`."""


class Schedule(NamedTuple):
    """The values of all schedules at one update."""

    rate: Float[Array, ""]
    """Factor of the learning rates."""
    entropy: Float[Array, ""]
    """Weight of the entropy bonus."""
    marginal: MarginalSchedule
    """Schedule state of the average over the others' policies."""


class Evaluation(NamedTuple):
    """A critic along a trajectory."""

    context: Float[Array, "time env agent width"]
    hidden_states: Float[Array, "time env agent hidden"]
    """The hidden state after each step."""
    estimated: Estimate
