"""An estimator: antithetic pairs of joint actions."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from perla.config import Count
from perla.errors import UserError
from perla.marginal.estimators import Samples
from perla.methods.estimators import Estimator


class Antithetic(Estimator, tag="antithetic", frozen=True):
    """Pairs of joint actions at opposite quantiles of the policies, weighted equally."""

    pairs: Count = 8
    """Pairs drawn at each state."""

    def create(self, agents: int, actions: int | None, *, closed_form: bool) -> "Pairs":
        """The estimator for `agents` with `actions` each."""
        if actions is None:
            raise UserError("estimator 'antithetic': is for discrete actions")
        return Pairs(2 * self.pairs)


@dataclass(frozen=True)
class Pairs(Samples):
    """Draws 2j and 2j + 1 are the quantiles u and 1 − u, with u uniform on [0, 1)."""

    def points(self, key, shape, rows=None):
        """The points of these rows, or of all."""
        rows = jnp.arange(self.num_samples) if rows is None else rows
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row // 2))(rows)
        u = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
        is_second = (rows % 2 == 1).reshape(-1, *(1 for _ in shape))
        below_one = jnp.nextafter(jnp.float32(1), jnp.float32(0))
        return jnp.where(is_second, jnp.minimum(1 - u, below_one), u)
