"""The first number of a seed that is not finite: in which array, of which agent, near which step.

A NaN or an infinity spreads through a learner within one update and leaves no trace of where it
came from. So every update is checked, at the price of one pass over its rollout and parameters,
and a seed stops at the first fault: what it learnt before stays as it was.
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
from perla.types import Array, Bool, Float, Int, Metrics

REWARD = "reward"
MASK = "action mask"
ENVIRONMENT = ("observation", "final observation", "state", "final state", MASK, REWARD)
"""What an environment sends, in the order in which it is looked at."""
SHARED = ("state", "final state")
"""Those of them that belong to no agent."""
LEARNER = "learner"
NONE = -1
"""No array, or no agent in particular."""


class Fault(NamedTuple):
    """The first fault of a seed, as arrays that a compiled loop can carry."""

    array: Int[Array, ""]
    """Its place among those of `ENVIRONMENT`, the learner and the metrics by name; −1 while nothing
    is wrong."""
    agent: Int[Array, ""]
    """The agent that it belongs to; −1 where it belongs to no agent."""
    step: Int[Array, ""]
    """Environment transitions made until then, summed over copies."""
    reward: Float[Array, ""]
    """The largest magnitude of a reward in the rollout."""

    @classmethod
    def none(cls) -> Fault:
        """Nothing is wrong."""
        return cls(jnp.int32(NONE), jnp.int32(NONE), jnp.int32(0), jnp.float32(0.0))

    @property
    def found(self) -> Bool[Array, ""]:
        """A number is not finite."""
        return self.array != NONE

    def before(self, later: Fault) -> Fault:
        """This fault, or `later` where there is none yet."""
        return jax.tree.map(lambda a, b: jnp.where(self.found, a, b), self, later)


@dataclass(frozen=True)
class NonFinite:
    """A `Fault` in words."""

    array: str
    agent: int | None
    step: int
    reward: float

    def __str__(self) -> str:
        whose = "" if self.agent is None else f" of agent {self.agent}"
        if self.array == MASK:
            return f"agent {self.agent} has no legal action near step {self.step:,}"
        place = f"{self.array}{whose} is not finite near step {self.step:,}"
        if self.agent is None and math.isfinite(self.reward):
            place += f" (the largest reward there is {self.reward:.3g})"
        return place


def find(trajectory: Trajectory, learner: Any, metrics: Metrics, steps: Int[Array, ""]) -> Fault:
    """The first fault of an update that began after `steps` steps: in what the environment sent,
    else in what was learnt from it, else in the metrics."""
    copies = trajectory.valid.shape[1]
    rows = []
    for name, flags in zip(ENVIRONMENT, _environment(trajectory), strict=True):
        first = flags.any(-1).argmax()
        agent = jnp.int32(NONE) if name in SHARED else flags[first].argmax()
        rows.append((flags.any(), agent, steps + first * copies))
    after = steps + trajectory.valid.sum(dtype=jnp.int32)
    measured = ~jnp.isfinite(jnp.stack([metrics[name] for name in sorted(metrics)]))
    rows += [(flag, jnp.int32(NONE), after) for flag in (~finite(learner), *measured)]
    found, agents, places = (jnp.stack(column) for column in zip(*rows, strict=True))
    array = found.argmax()
    return Fault(
        jnp.where(found.any(), array, NONE).astype(jnp.int32),
        agents[array].astype(jnp.int32),
        places[array].astype(jnp.int32),
        jnp.abs(trajectory.reward).max().astype(jnp.float32),
    )


def in_rewards(agents: Bool[Array, " agent"], steps: Int[Array, ""]) -> Fault:
    """The fault of an evaluation after `steps` steps, in which these `agents` earned a reward that
    is not finite."""
    return Fault(
        jnp.where(agents.any(), ENVIRONMENT.index(REWARD), NONE).astype(jnp.int32),
        agents.argmax().astype(jnp.int32),
        jnp.int32(steps),
        jnp.float32(0.0),
    )


def finite(tree: Any) -> Bool[Array, ""]:
    """Every number of a tree is finite; those of a replay were, when they went in."""
    # One long array costs a copy, and compiles to one loop where each leaf's own would be hundreds.
    return jnp.isfinite(jnp.concatenate([leaf.ravel() for leaf in _numbers(tree).values()])).all()


def described(fault: Fault, learner: Any, metrics: Callable[[], Iterable[str]]) -> NonFinite | None:
    """A fault in words, None where nothing is wrong. `learner` is what the seed stands still with,
    `metrics` tells the names of all that an update measures."""
    array, agent, step, reward = (np.asarray(field).item() for field in fault)
    if array == NONE:
        return None
    name = [*ENVIRONMENT, LEARNER, *(f"metric {name}" for name in sorted(metrics()))][array]
    if name == LEARNER:
        numbers = _numbers(learner).items()
        wrong = next(path for path, leaf in numbers if not np.isfinite(np.asarray(leaf)).all())
        name = f"the learner's {wrong}"
    return NonFinite(name, None if agent == NONE else agent, step, reward)


def _environment(trajectory: Trajectory) -> list[Bool[Array, "time _"]]:
    """The faults in each of the arrays of `ENVIRONMENT`, of an agent or of all together."""
    seen, final = trajectory.observation, trajectory.final
    illegal = ~seen.avail.any(-1)
    if seen.alive is not None:
        illegal &= seen.alive
    flags = (
        ~jnp.isfinite(seen.obs).all(-1),
        ~jnp.isfinite(final.obs).all(-1),
        ~jnp.isfinite(seen.state).all(-1, keepdims=True),
        ~jnp.isfinite(final.state).all(-1, keepdims=True),
        illegal,
        ~jnp.isfinite(trajectory.reward),
    )
    return [(flag & trajectory.valid[..., None]).any(1) for flag in flags]


def _numbers(tree: Any) -> dict[str, Any]:
    """The arrays of a tree that can hold a NaN, but for a replay's, by their paths."""
    leaves = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: isinstance(node, Replay)
    )[0]
    return {
        jax.tree_util.keystr(path).lstrip("."): leaf
        for path, leaf in leaves
        if not isinstance(leaf, Replay) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
