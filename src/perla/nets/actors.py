"""Actors: from each agent's observations to its policy."""

from __future__ import annotations

import equinox as eqx

from perla.distributions import Categorical
from perla.envs.protocol import Observation
from perla.nets.body import Body
from perla.types import Array, Bool, Float


class Actor(eqx.Module):
    """π(·|τᵢ) of every agent: decentralised, each sees its own observations only."""

    body: Body

    def unroll(
        self,
        observation: Observation,
        memory: Float[Array, "*batch agent hidden"],
        fresh: Bool[Array, "time *batch"],
    ) -> tuple[Categorical, Float[Array, "time *batch agent hidden"]]:
        """The policies at consecutive steps and the memory after each; `observation` leads with
        the time axis."""
        context, memories = self.body.context(observation.obs, memory, fresh)
        return Categorical.masked(self.body.finish(context), observation.avail), memories

    def __call__(
        self,
        observation: Observation,
        memory: Float[Array, "*batch agent hidden"],
        fresh: Bool[Array, "*batch"],
    ) -> tuple[Categorical, Float[Array, "*batch agent hidden"]]:
        """One step: the policies now and the memory after."""
        one = Observation(*(x[None] for x in observation))
        policy, memories = self.unroll(one, memory, fresh[None])
        return Categorical(policy.log_probs[0]), memories[0]
