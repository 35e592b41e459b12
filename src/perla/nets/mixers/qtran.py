"""QTRAN: an unrestricted joint value and a constrained sum of utilities."""

from __future__ import annotations

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from perla.distributions import MASKED_LOGIT
from perla.nets.layers import MLP, SMALL, Init, expand_dims_like, product
from perla.nets.mixers.base import Mixer, MixerInput, MixerStep, Residual, dense
from perla.nets.terms import LossTerm
from perla.types import Array, Float, PRNGKeyArray


class QTRANMixer(Mixer):
    """Q(s, Σᵢ e(hᵢ, aᵢ)), unrestricted, beside Σᵢ Qᵢ + V(s), which is regressed to it (Son et al.,
    2019)."""

    e: MLP
    Q: MLP
    V: MLP
    condition: Literal["base", "alt"] = eqx.field(static=True, default="base")
    """The constraint at actions that are not greedy (QTRAN-base or QTRAN-alt)."""
    opt_coef: float = eqx.field(static=True, default=1.0)
    """Weight of the loss at the greedy joint action."""
    nopt_coef: float = eqx.field(static=True, default=1.0)
    """Weight of the loss of the constraint."""

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        *,
        features: int,
        actions: int,
        state: int,
        hidden_size: int,
        init: Init,
        condition: Literal["base", "alt"] = "base",
        opt_coef: float = 1.0,
        nopt_coef: float = 1.0,
    ) -> QTRANMixer:
        """`features`: width of h; `hidden_size`: width of all hidden layers and encodings e."""
        key_e, key_q, key_v = jax.random.split(key, 3)
        inner = (hidden_size,) * 2
        return cls(
            e=dense(key_e, features, (hidden_size,), hidden_size, init, extra_inputs=actions),
            Q=dense(key_q, state, inner, 1, init, extra_inputs=hidden_size, gain=SMALL),
            V=dense(key_v, state, inner, 1, init, gain=SMALL),
            condition=condition,
            opt_coef=opt_coef,
            nopt_coef=nopt_coef,
        )

    def __call__(self, inputs: MixerInput) -> Float[Array, "*batch 1"]:
        """The joint action's value."""
        encoded = self.e.finish(self.e.begin(inputs.hidden) + self.e.extra_rows[inputs.action])
        joint = product(encoded.sum(-2), self.Q.extra_rows)
        return self.Q.finish(self.Q.begin(inputs.state) + joint)

    def losses(self, step: MixerStep, residual: Residual) -> dict[str, LossTerm]:
        """L_opt and L_nopt (Son et al., 2019)."""
        at_greedy, elsewhere = self.violations(step)
        return {
            "opt_loss": LossTerm(self.opt_coef, residual(at_greedy)),
            "nopt_loss": LossTerm(self.nopt_coef, residual(elsewhere)),
        }

    def violations(
        self, step: MixerStep
    ) -> tuple[Float[Array, "*batch 1"], Float[Array, "*batch value"]]:
        """The violations of the constraints on D(s, a) = Σᵢ Qᵢ + V(s) − Q(s, a): at the greedy
        joint action ā, and elsewhere (Son et al., 2019, Theorem 1 and QTRAN-alt)."""
        at_greedy = self.gap(step.greedy)  # D(s, ā) = 0
        match self.condition:
            case "base":  # D(s, a) ≥ 0
                return at_greedy, jnp.minimum(self.gap(step.taken), 0.0)
            case "alt":  # minₐ′ D(s, a′ᵢ, a₋ᵢ) = 0 for every i
                gaps = self.unilateral_gaps(step.taken, step.utilities)
                return at_greedy, jnp.where(step.action_mask, gaps, -MASKED_LOGIT).min(-1)

    def gap(self, inputs: MixerInput) -> Float[Array, "*batch 1"]:
        """D(s, a) = Σᵢ Qᵢ + V(s) − Q(s, a), without a gradient in Q."""
        Q = jax.lax.stop_gradient(self(inputs))
        return inputs.chosen.sum(-1, keepdims=True) + self.V(inputs.state) - Q

    def unilateral_gaps(
        self, inputs: MixerInput, utilities: Float[Array, "*batch agent action"]
    ) -> Float[Array, "*batch agent action"]:
        """D(s, a′ᵢ, a₋ᵢ) for every unilateral deviation a′ᵢ, without a gradient in Q."""
        chosen, _, action, state, hidden = inputs
        begun = self.e.begin(hidden)[..., None, :]
        all_encoded = self.e.finish(begun + expand_dims_like(self.e.extra_rows, begun))
        encoded = jnp.take_along_axis(all_encoded, action[..., None, None], -2)
        # Σⱼ e(hⱼ, aⱼ) − e(hᵢ, aᵢ) + e(hᵢ, a′ᵢ), and the same of the utilities
        joint = encoded.sum(-3, keepdims=True) - encoded + all_encoded
        total = chosen.sum(-1)[..., None, None] - chosen[..., None] + utilities
        begun = self.Q.begin(state)[..., None, None, :]
        Q = jax.lax.stop_gradient(self.Q.finish(begun + product(joint, self.Q.extra_rows)))
        return total + self.V(state)[..., None] - Q[..., 0]
