"""Replay buffer: a ring of the newest sequences.

A sequence is one environment's steps between two updates, with all of their successors. Its
*timesteps* are, in this order, the observations of its steps, the successor of the last step, and
the final observations of steps that were truncated: every step's successor is a timestep of its own
sequence, and no observation is stored twice. For γ = 0, which needs no successors, only the
observations of the steps are stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from perla.algos.alive import LossMask, loss_mask
from perla.algos.protocol import Trajectory
from perla.envs.protocol import Observation, Spec
from perla.errors import UserError
from perla.types import Array, Bool, Float, Int, Key

Tree = TypeVar("Tree")


class Sequences(NamedTuple):
    """Sequences of steps. Axes are `[time, sequence]` in batches; in the ring, sequences lead."""

    observation: Observation
    """`[timestep, sequence, ...]`."""
    hidden_state: Float[Array, "1 sequence agent memory"]
    """The actor's hidden state before the first step."""
    is_first: Bool[Array, "time sequence"]
    valid: Bool[Array, "time sequence"]
    action: Int[Array, "time sequence agent"] | Float[Array, "time sequence agent dimension"]
    reward: Float[Array, "time sequence value"]
    terminated: Bool[Array, "time sequence"]
    truncated: Bool[Array, "time sequence"]
    sources: Int[Array, "extra sequence"]
    """The steps whose successors are the timesteps after those of the steps."""

    @property
    def now(self) -> Observation:
        """`[time, sequence, ...]`, the observations of the steps."""
        return self.at_steps(self.observation)

    def at_steps(self, tree: Tree) -> Tree:
        """Arrays `[timestep, ...]` at the observations of the steps: `[time, ...]`."""
        return jax.tree.map(lambda x: x[: len(self.is_first)], tree)

    @property
    def loss_mask(self) -> LossMask:
        """The steps that count in losses."""
        return loss_mask(self.valid, self.now)

    @property
    def successor(self) -> Int[Array, "time sequence"]:
        """The timestep that is each step's successor."""
        time = len(self.truncated)
        following = jnp.arange(1, time + 1)[:, None]
        return jnp.where(self.truncated, time + self.truncated.cumsum(0), following)


def sequences(
    trajectory: Trajectory,
    reward: Float[Array, "time env value"],
    spec: Spec,
    *,
    state: bool,
    successors: bool = True,
    max_truncations: int | None = None,
) -> Sequences:
    """The sequences of a trajectory with `reward` as their reward, with or without the global
    state and the successors of steps. At most `max_truncations` steps of each are truncated, by
    default as many as `spec` allows.

    Raises `UserError` if observations have `alive` and the spec is not mortal, or the reverse.
    """
    if spec.mortal != (trajectory.observation.alive is not None):
        raise UserError(
            f"{spec.id}: mortal = {spec.mortal}, and its observations say otherwise; those of a "
            "mortal environment have `alive`, those of any other have none"
        )
    time, env = trajectory.truncated.shape
    size = spec.max_truncations(time) if max_truncations is None else max_truncations
    size = size if successors else 0
    # Steps that are not valid need no successor, however many of them are truncated.
    truncated = trajectory.truncated & trajectory.valid

    def truncated_steps(truncated: Bool[Array, " time"]) -> Int[Array, " truncation"]:
        return jnp.nonzero(truncated, size=size, fill_value=time - 1)[0]

    truncations = jax.vmap(truncated_steps, in_axes=1, out_axes=1)(truncated)
    envs = jnp.arange(env)[None]

    def timesteps(steps: Array, last: Array, final: Array) -> Array:
        return jnp.concatenate([steps, last[None], final[truncations, envs]])

    observation, sources = trajectory.observation, truncations
    if successors:
        observation = jax.tree.map(timesteps, observation, trajectory.last, trajectory.final)
        sources = jnp.concatenate([jnp.full_like(envs, time - 1), truncations])
    if not state:
        observation = observation._replace(state=observation.state[..., :0])
    return Sequences(
        observation=observation,
        hidden_state=trajectory.hidden_state[:1],
        is_first=trajectory.is_first,
        valid=trajectory.valid,
        action=trajectory.action.astype(
            float if spec.continuous else smallest_int(spec.max_actions)
        ),
        reward=reward,
        terminated=trajectory.terminated,
        truncated=truncated,
        sources=sources.astype(smallest_int(time)),
    )


class Replay(NamedTuple):
    """A ring of sequences."""

    ring: Sequences
    added: Int[Array, ""]
    """Sequences added so far."""

    @classmethod
    def create(
        cls,
        spec: Spec,
        capacity: int,
        length: int,
        *,
        max_truncations: int,
        hidden_state_size: int,
        values: int,
        state: bool,
        successors: bool = True,
    ) -> Replay:
        """An empty ring for `capacity` sequences of `length` steps, at most `max_truncations` of
        them truncated, with rewards for each of `values`, with or without the global state and the
        successors of steps."""
        extra = 1 + max_truncations if successors else 0
        timesteps, agents = length + extra, spec.agents

        def empty(*shape: int, dtype: Any = float) -> Array:
            return jnp.zeros((capacity, *shape), dtype)

        observation = Observation(
            empty(timesteps, agents, spec.obs),
            empty(timesteps, spec.state if state else 0),
            empty(timesteps, agents, spec.max_actions, dtype=bool),
            empty(timesteps, agents, dtype=bool) if spec.mortal else None,
        )
        if spec.continuous:
            action = empty(length, agents, spec.max_actions)
        else:
            action = empty(length, agents, dtype=smallest_int(spec.max_actions))
        ring = Sequences(
            observation=observation,
            hidden_state=empty(1, agents, hidden_state_size),
            is_first=empty(length, dtype=bool),
            valid=empty(length, dtype=bool),
            action=action,
            reward=empty(length, values),
            terminated=empty(length, dtype=bool),
            truncated=empty(length, dtype=bool),
            sources=empty(extra, dtype=smallest_int(length)),
        )
        return cls(ring, jnp.int32(0))

    @property
    def capacity(self) -> int:
        """Number of sequences that the ring holds when full."""
        return len(self.ring.valid)

    @property
    def stores_state(self) -> bool:
        """True if sequences have the global state."""
        return self.ring.observation.state.shape[-1] > 0

    @property
    def stores_successors(self) -> bool:
        """True if sequences have the successors of steps."""
        return self.ring.sources.shape[-1] > 0

    @property
    def max_truncations(self) -> int:
        """The most truncated steps that a sequence has room for."""
        return max(0, self.ring.sources.shape[-1] - 1)

    def add(self, new: Sequences) -> Replay:
        """The ring with `new` in place of the oldest sequences."""
        count = new.valid.shape[1]
        slots = (self.added + jnp.arange(count)) % self.capacity
        # A single row is written twice: XLA would fuse its write with reads, and copy the ring.
        rows = jnp.zeros(2, int) if count == 1 else jnp.arange(count)
        ring = jax.tree.map(
            lambda ring, x: ring.at[slots[rows]].set(x.swapaxes(0, 1)[rows]), self.ring, new
        )
        return Replay(ring, self.added + count)

    def sample(self, keys: Key[Array, " step"], count: int) -> Sequences:
        """`count` sequences for each of `keys`, `[step, ...]`, sampled with replacement."""
        filled = jnp.minimum(self.added, self.capacity)
        slots = jax.vmap(lambda key: jax.random.randint(key, (count,), 0, filled))(keys)
        return jax.tree.map(lambda x: x[slots].swapaxes(1, 2), self.ring)


def smallest_int(count: int) -> Any:
    """The smallest integer type for `count` indices."""
    return next(t for t in (jnp.int8, jnp.int16, jnp.int32) if count - 1 <= jnp.iinfo(t).max)
