"""Replay: the newest sequences of experience, in a ring.

A sequence is what one copy went through between two updates, and all that it led to. Its *places*
are, in this order, what its steps were chosen from, what the last step led to, and the final
observations of steps that were truncated: so every step's successor is a place of its own sequence,
and nothing is kept twice. Where nobody asks what follows, for γ = 0, only the first are kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perla.algos.alive import LossMask, loss_mask
from perla.algos.protocol import Trajectory
from perla.envs.protocol import Observation, Spec
from perla.errors import UserError
from perla.types import Array, Bool, Float, Int, Key


class Sequences(NamedTuple):
    """What several copies went through. Its axes are `[time, sequence]` where it is learnt from;
    in the ring, sequences lead."""

    observation: Observation
    """`[place, sequence, ...]`."""
    hidden_state: Float[Array, "1 sequence agent memory"]
    """The actor's, before the first step."""
    is_first: Bool[Array, "time sequence"]
    valid: Bool[Array, "time sequence"]
    action: Int[Array, "time sequence agent"] | Float[Array, "time sequence agent dimension"]
    reward: Float[Array, "time sequence value"]
    terminated: Bool[Array, "time sequence"]
    truncated: Bool[Array, "time sequence"]
    sources: Int[Array, "extra sequence"]
    """The steps that led to the places beyond the steps."""

    @property
    def now(self) -> Observation:
        """`[time, sequence, ...]`, what the steps were chosen from."""
        return jax.tree.map(lambda x: x[: len(self.is_first)], self.observation)

    @property
    def loss_mask(self) -> LossMask:
        """The steps that are learnt from."""
        return loss_mask(self.valid, self.now)

    @property
    def next_place(self) -> Int[Array, "time sequence"]:
        """The place that each step led to."""
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
) -> Sequences:
    """What `trajectory` leaves to be replayed, with `reward` in place of its own; with the global
    state or without, with the places that steps led to or without.

    Raises `UserError` where observations say who is alive and the spec does not, or the reverse.
    """
    if spec.mortal != (trajectory.observation.alive is not None):
        raise UserError(
            f"{spec.id}: mortal = {spec.mortal}, and its observations say otherwise; a mortal "
            "world's have `alive`, any other's have none"
        )
    time, env = trajectory.truncated.shape
    most = truncations(time, spec.limit) if successors else 0

    def cuts(truncated: Bool[Array, " time"]) -> Int[Array, " cut"]:
        return jnp.nonzero(truncated, size=most, fill_value=time - 1)[0]

    cut = jax.vmap(cuts, in_axes=1, out_axes=1)(trajectory.truncated)
    copies = jnp.arange(env)[None]

    def places(steps: Array, last: Array, final: Array) -> Array:
        return jnp.concatenate([steps, last[None], final[cut, copies]])

    observation, sources = trajectory.observation, cut
    if successors:
        observation = jax.tree.map(places, observation, trajectory.last, trajectory.final)
        sources = jnp.concatenate([jnp.full_like(copies, time - 1), cut])
    if not state:
        observation = observation._replace(state=observation.state[..., :0])
    return Sequences(
        observation=observation,
        hidden_state=trajectory.hidden_state[:1],
        is_first=trajectory.is_first,
        valid=trajectory.valid,
        action=trajectory.action.astype(float if spec.continuous else smallest(spec.max_actions)),
        reward=reward,
        terminated=trajectory.terminated,
        truncated=trajectory.truncated,
        sources=sources.astype(smallest(time)),
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
        hidden_state: int,
        values: int,
        state: bool,
        successors: bool = True,
    ) -> Replay:
        """Room for `capacity` sequences of `length` steps, of an actor with a `hidden_state` for each
        agent and a reward for each of `values`; with the global state or without, with the places
        that steps led to or without."""
        extra = 1 + truncations(length, spec.limit) if successors else 0
        places, agents = length + extra, spec.agents

        def room(*shape: int, dtype: Any = float) -> Array:
            return jnp.zeros((capacity, *shape), dtype)

        observation = Observation(
            room(places, agents, spec.obs),
            room(places, spec.state if state else 0),
            room(places, agents, spec.max_actions, dtype=bool),
            room(places, agents, dtype=bool) if spec.mortal else None,
        )
        if spec.continuous:
            action = room(length, agents, spec.max_actions)
        else:
            action = room(length, agents, dtype=smallest(spec.max_actions))
        ring = Sequences(
            observation=observation,
            hidden_state=room(1, agents, hidden_state),
            is_first=room(length, dtype=bool),
            valid=room(length, dtype=bool),
            action=action,
            reward=room(length, values),
            terminated=room(length, dtype=bool),
            truncated=room(length, dtype=bool),
            sources=room(extra, dtype=smallest(length)),
        )
        return cls(ring, jnp.int32(0))

    @property
    def capacity(self) -> int:
        """Sequences that it has room for."""
        return len(self.ring.valid)

    @property
    def sees_state(self) -> bool:
        """Whether it keeps the global state."""
        return self.ring.observation.state.shape[-1] > 0

    @property
    def sees_successors(self) -> bool:
        """Whether it keeps the places that steps led to."""
        return self.ring.sources.shape[-1] > 0

    def add(self, new: Sequences) -> Replay:
        """With `new` in the place of the oldest."""
        count = new.valid.shape[1]
        slots = (self.added + jnp.arange(count)) % self.capacity
        ring = jax.tree.map(lambda ring, x: ring.at[slots].set(x.swapaxes(0, 1)), self.ring, new)
        return Replay(ring, self.added + count)

    def sample(self, keys: Key[Array, " step"], count: int) -> Sequences:
        """For each of `keys` `count` sequences, `[step, ...]`, drawn from all that are there."""
        held = jnp.minimum(self.added, self.capacity)
        slots = jax.vmap(lambda key: jax.random.randint(key, (count,), 0, held))(keys)
        return jax.tree.map(lambda x: x[slots].swapaxes(1, 2), self.ring)


def truncations(length: int, limit: int | None) -> int:
    """The most truncations in `length` steps: an episode that is cut has lasted `limit` steps."""
    return 0 if limit is None else 1 + (length - 1) // limit


def smallest(count: int) -> Any:
    """The smallest integers that number `count` things."""
    return next(t for t in (jnp.int8, jnp.int16, jnp.int32) if count - 1 <= jnp.iinfo(t).max)
