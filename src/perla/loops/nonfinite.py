"""Detection of the first number that is not finite: its array, its agent and the step.

A NaN or an infinity spreads through a learner within one update and hides its origin. So every
update is checked, which costs one pass over its rollout and parameters, and a seed stops training
at its first fault. The best actor is from an evaluation before the fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.algos.protocol import Trajectory
from perla.algos.replay import Replay
from perla.parallel import of_all, shares, total
from perla.types import Array, Bool, Float, Int, Metrics

REWARD = "reward"
MASK = "action mask"
ENVIRONMENT = ("observation", "final observation", "state", "final state", MASK, REWARD)
"""The arrays that an environment returns, in the order in which they are checked."""
SHARED = ("state", "final state")
"""The arrays that belong to no single agent."""
LEARNER = "learner"
NONE = -1
"""The index of no array, or of no agent."""


class Fault(NamedTuple):
    """The first fault of a seed, as arrays that a compiled loop can carry."""

    array: Int[Array, ""]
    """Index into the arrays of `ENVIRONMENT`, then the learner, then the metrics sorted by name;
    −1 without a fault."""
    agent: Int[Array, ""]
    """The agent whose number it is; −1 if it belongs to none."""
    step: Int[Array, ""]
    """Environment steps before the fault, summed over environments."""
    reward: Float[Array, ""]
    """The largest magnitude of a reward in the rollout."""

    @classmethod
    def none(cls) -> Fault:
        """No fault."""
        return cls(jnp.int32(NONE), jnp.int32(NONE), jnp.int32(0), jnp.float32(0.0))

    @property
    def found(self) -> Bool[Array, ""]:
        """True if there is a fault."""
        return self.array != NONE

    def of_all_shares(self) -> Fault:
        """The fault of all shares of the environments: the first in the order of the arrays."""
        faults = of_all(self)
        first = jnp.where(faults.array == NONE, jnp.iinfo(jnp.int32).max, faults.array).argmin()
        fault = jax.tree.map(lambda x: x[first], faults)
        return fault._replace(reward=faults.reward.max())

    def or_else(self, later: Fault) -> Fault:
        """This fault, or `later` if this is none."""
        return jax.tree.map(lambda a, b: jnp.where(self.found, a, b), self, later)


@dataclass(frozen=True)
class NonFinite:
    """The first fault of a seed, for messages."""

    array: str
    agent: int | None
    step: int
    reward: float

    def __str__(self) -> str:
        if self.array == MASK:
            return f"agent {self.agent} has no legal action near step {self.step:,}"
        of_agent = "" if self.agent is None else f" of agent {self.agent}"
        text = f"{self.array}{of_agent} is not finite near step {self.step:,}"
        if self.agent is None and math.isfinite(self.reward):
            text += f" (the largest reward there is {self.reward:.3g})"
        return text


def find_fault(
    trajectory: Trajectory, learner: Any, metrics: Metrics, steps: Int[Array, ""]
) -> Fault:
    """The first fault of an update that began after `steps` steps, checking the trajectory, then
    the updated learner, then the metrics."""
    num_envs = shares() * trajectory.valid.shape[1]
    checks = []  # (is there a fault, agent, step) for each array
    for name, faulty in zip(ENVIRONMENT, _faults_of_environment(trajectory), strict=True):
        time = faulty.any(-1).argmax()
        agent = jnp.int32(NONE) if name in SHARED else faulty[time].argmax()
        checks.append((faulty.any(), agent, steps + time * num_envs))
    steps_after = steps + total(trajectory.valid.sum(dtype=jnp.int32))
    bad_metrics = ~jnp.isfinite(jnp.stack([metrics[name] for name in sorted(metrics)]))
    for bad in (~all_finite(learner), *bad_metrics):
        checks.append((bad, jnp.int32(NONE), steps_after))
    found, agents, fault_steps = (jnp.stack(column) for column in zip(*checks, strict=True))
    array = found.argmax()
    fault = Fault(
        jnp.where(found.any(), array, NONE).astype(jnp.int32),
        agents[array].astype(jnp.int32),
        fault_steps[array].astype(jnp.int32),
        jnp.abs(trajectory.reward).max().astype(jnp.float32),
    )
    return fault.of_all_shares()


def fault_of_evaluation(agents: Bool[Array, " agent"], steps: Int[Array, ""]) -> Fault:
    """The fault of an evaluation after `steps` steps in which `agents` received a reward that is
    not finite."""
    return Fault(
        jnp.where(agents.any(), ENVIRONMENT.index(REWARD), NONE).astype(jnp.int32),
        agents.argmax().astype(jnp.int32),
        jnp.int32(steps),
        jnp.float32(0.0),
    )


def all_finite(tree: Any) -> Bool[Array, ""]:
    """True if every number of `tree` is finite. Replay buffers are skipped: their content was
    checked when it was collected."""
    # Concatenation costs a copy but compiles to one loop instead of hundreds, one for each leaf.
    leaves = [leaf.ravel() for leaf in _inexact_leaves(tree).values()]
    return jnp.isfinite(jnp.concatenate(leaves)).all()


def describe(
    fault: Fault, learner: Any, metric_names: Callable[[], Iterable[str]]
) -> NonFinite | None:
    """The fault with its array's name, None if there is no fault.

    `learner` is the learner after the fault; `metric_names` returns the names of an update's
    metrics.
    """
    array, agent, step, reward = (np.asarray(field).item() for field in fault)
    if array == NONE:
        return None
    name = [*ENVIRONMENT, LEARNER, *(f"metric {name}" for name in sorted(metric_names()))][array]
    if name == LEARNER:
        leaves = _inexact_leaves(learner).items()
        path = next(path for path, leaf in leaves if not np.isfinite(np.asarray(leaf)).all())
        name = f"the learner's {path}"
    return NonFinite(name, None if agent == NONE else agent, step, reward)


def _faults_of_environment(trajectory: Trajectory) -> list[Bool[Array, "time _"]]:
    """For each array of `ENVIRONMENT` the faults `[time, agent]`, or `[time, 1]` if it is shared,
    of any environment."""
    observation, final = trajectory.observation, trajectory.final
    no_action = ~observation.avail.any(-1)
    if observation.alive is not None:
        no_action &= observation.alive
    faulty = (
        ~jnp.isfinite(observation.obs).all(-1),
        ~jnp.isfinite(final.obs).all(-1),
        ~jnp.isfinite(observation.state).all(-1, keepdims=True),
        ~jnp.isfinite(final.state).all(-1, keepdims=True),
        no_action,
        ~jnp.isfinite(trajectory.reward),
    )
    return [(flags & trajectory.valid[..., None]).any(1) for flags in faulty]


def _inexact_leaves(tree: Any) -> dict[str, Any]:
    """The floating-point arrays of `tree` by their paths, without those of replay buffers."""
    leaves = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: isinstance(node, Replay)
    )[0]
    return {
        jax.tree_util.keystr(path).lstrip("."): leaf
        for path, leaf in leaves
        if not isinstance(leaf, Replay) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
