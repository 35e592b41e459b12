"""Words shared by every room of the house.

Axis names, used in every shape annotation and nowhere with another meaning:

=============  ==========================================================================
``seed``       independent repetitions of one run
``time``       consecutive environment steps of one copy
``env``        copies of the environment, stepped side by side
``copy``       the same, as the last axis within an environment
``agent``      the agents of one environment, in the environment's own order
``unit``       the units of one battle, of both sides or of one
``action``     the discrete actions of one agent (padded to the largest, and masked)
``dimension``  the dimensions of one agent's continuous action (padded and masked alike)
``sample``     joint actions over which a critic is marginalised
``food``       the foods of one foraging environment, in row-major order
``item``       things that agents look at: foods, or agents
``feature``    entries of an observation or of a hidden layer
=============  ==========================================================================

A *step* is one environment transition; counts are summed over copies and divided by nothing.
"""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, UInt

Metrics: TypeAlias = dict[str, Float[Array, ""]]
"""Named scalars of one interval and seed."""

Actions: TypeAlias = Int[Array, "*batch agent"] | Float[Array, "*batch agent dimension"]
"""Joint actions: for each agent the index of a discrete action, or a vector."""

__all__ = ["Actions", "Array", "Bool", "Float", "Int", "Key", "Metrics", "PRNGKeyArray", "UInt"]
