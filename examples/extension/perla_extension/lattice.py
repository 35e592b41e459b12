"""An estimator: joint actions from a lattice that is shifted at random."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from perla.config import Count
from perla.errors import UserError
from perla.marginal.estimators import Samples
from perla.methods.estimators import Estimator


class Lattice(Estimator, tag="lattice", frozen=True):
    """Points of a lattice as quantiles of the policies, shifted at random and weighted equally."""

    lattice_points: Count = 17
    """Points drawn at each state."""

    def create(self, agents: int, actions: int | None, *, closed_form: bool) -> "Points":
        """The estimator for `agents` with `actions` each."""
        if actions is None:
            raise UserError("estimator 'lattice': is for discrete actions")
        return Points(self.lattice_points)


@dataclass(frozen=True)
class Points(Samples):
    """Point j of N agents is (u + j α) mod 1, with u uniform on [0, 1)ᴺ and αᵢ = φ⁻ⁱ, where φ is
    the root of φᴺ⁺¹ = φ + 1 (the R-sequence)."""

    def points(self, key, shape, rows=None):
        """The points of these rows, or of all."""
        rows = jnp.arange(self.num_samples) if rows is None else rows
        agents = shape[-1]
        phi = 2.0
        for _ in range(30):  # The iteration contracts to the root.
            phi = (1.0 + phi) ** (1.0 / (agents + 1))
        alpha = phi ** -np.arange(1, agents + 1)
        shift = jax.random.uniform(key, shape)
        return jax.vmap(lambda row: (shift + row * jnp.broadcast_to(alpha, shape)) % 1.0)(rows)
