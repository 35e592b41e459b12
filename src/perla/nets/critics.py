"""Critics: of one agent's view, of the state, of either and the others' joint action."""

from __future__ import annotations

from functools import reduce
from typing import Literal

import equinox as eqx
import jax.numpy as jnp

from perla.envs.protocol import Observation
from perla.nets.body import Body
from perla.nets.layers import along
from perla.types import Array, Bool, Float, Int


class Critic(eqx.Module):
    """V(·) or V(·, a₋ᵢ) of every agent (or, with an output for every own action, Q).

    What does not depend on the others' actions is computed once a state, by `context`; `joint`
    adds the actions and computes the rest. Agent i never sees its own entry of a joint action.
    """

    body: Body
    sees: Literal["local", "global"] = eqx.field(static=True)
    actions: int = eqx.field(static=True)
    """Actions of each other agent that the critic is told of; 0 for a critic of the state alone."""

    def context(
        self,
        observation: Observation,
        memory: Float[Array, "*batch agent hidden"],
        fresh: Bool[Array, "time *batch"],
    ) -> tuple[Float[Array, "time *batch agent width"], Float[Array, "time *batch agent hidden"]]:
        """All that does not depend on the others' actions at consecutive steps, and the memory
        after each."""
        local = self.sees == "local"
        x = observation.obs if local else observation.state[..., None, :]
        return self.body.context(x, memory, fresh)

    def alone(
        self, context: Float[Array, "*batch agent width"]
    ) -> Float[Array, "*batch agent out"]:
        """The outputs of a critic that sees no actions."""
        return self.body.finish(context)

    def joint(
        self,
        context: Float[Array, "*batch agent width"],
        actions: Int[Array, "*batch_or_none agent"],
    ) -> Float[Array, "*batch agent out"]:
        """The outputs for a joint action."""
        return self.body.output(self.meet(context, actions))

    def meet(
        self,
        context: Float[Array, "*batch agent width"],
        actions: Int[Array, "*batch_or_none agent"],
    ) -> Float[Array, "*batch agent width"]:
        """The last hidden layer's output for a joint action, in which the outputs are linear.

        A joint action without batch axes serves every state; its part is then computed once.
        """
        agents, rows = self.body.agents, self.body.rows
        which = actions + along(self.actions * jnp.arange(agents), actions)
        if self.body.separate:
            own = jnp.repeat(jnp.eye(agents, dtype=bool), self.actions, axis=-1)
            rows = jnp.where(own[..., None], 0.0, rows).swapaxes(0, 1)  # [row, agent, width]
            looked_up = rows.at[which].get(mode="clip")
            seen = reduce(jnp.add, (looked_up[..., m, :, :] for m in range(agents)))
        else:
            looked_up = rows.at[which].get(mode="clip")
            # Agent by agent, which compilers merge with what follows; a sum would stand alone.
            joint = reduce(jnp.add, (looked_up[..., m : m + 1, :] for m in range(agents)))
            seen = joint - looked_up
        return self.body.hidden(context + along(seen, context))
