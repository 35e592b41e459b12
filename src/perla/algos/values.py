"""What a critic's view is worth: the values of `perla.methods.values`, computed.

Every value answers two questions about a state: what is it worth (`estimate`, for bootstrapping
and as a baseline), and what does the critic predict for the transition that was made
(`prediction`, which is regressed on the target).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from perla.distributions import Categorical
from perla.marginal import average, combine, draw
from perla.methods.aggregators import Mean
from perla.methods.estimators import Analytic, Sampled, resolve
from perla.methods.values import Embedded, Value
from perla.nets.critics import AnyCritic, Critic, Multilinear
from perla.types import Array, Float, Int, PRNGKeyArray

SPREAD = Sampled(k=5, sampler="latin")
"""What the spread is taken from where the average needs no draws."""


class Estimate(NamedTuple):
    """A critic's answer at each state, in the critic's own (normalised) units."""

    value: Float[Array, "*batch agent"]
    """The worth of the state: V(·), or V̂ marginalised over a₋ᵢ."""
    action_values: Float[Array, "*batch agent out"]
    """Q̂ᵢ(s, ·) of the agent's own actions; for the state-value forms `value` once more."""
    spread: Float[Array, "*batch agent"]
    """Standard deviation of the critic over a₋ᵢ; zero for critics that see no actions."""


def outputs(value: Value, actions: int) -> int:
    """Outputs of the critic for each agent: one, or one for each own action."""
    return actions if advantage_is_critics(value) else 1


def advantage_is_critics(value: Value) -> bool:
    """Whether the advantage is read off the critic (action-value form) or off the returns."""
    return isinstance(value, Embedded) and value.form == "action-value"


def estimate(
    value: Value,
    critic: AnyCritic,
    context: Float[Array, "*batch agent width"],
    policy: Categorical,
    key: PRNGKeyArray,
    hope: float | Float[Array, ""] = 1.0,
) -> Estimate:
    """The worth of each state under `policy`; `hope` is what is left of an annealed optimism."""
    if not isinstance(value, Embedded):
        assert isinstance(critic, Critic)
        v = critic.alone(context)
        return Estimate(v[..., 0], v, jnp.zeros_like(v[..., 0]))
    policy = jax.lax.stop_gradient(policy)
    closed_form = isinstance(critic, Multilinear)
    estimator = resolve(value.estimator, *policy.log_probs.shape[-2:], closed_form=closed_form)
    if isinstance(estimator, Analytic):
        assert isinstance(critic, Multilinear)
        mean = critic.expected(context, policy.probs)
        draws = draw(SPREAD, policy, key)
    else:
        draws = draw(estimator, policy, key)
        # The outputs are linear in what the actions meet in, so that is what is averaged.
        mean = critic.read(average(partial(critic.meet, context), draws))
    q = mean
    if not isinstance(value.aggregator, Mean):
        q = combine(value.aggregator, partial(critic.joint, context), draws, hope)
    spread = jnp.sqrt(average(lambda actions: (critic.joint(context, actions) - mean) ** 2, draws))
    if value.form == "state-value":
        return Estimate(q[..., 0], q, spread[..., 0])
    # V̂ᵢ(s) = Σₐ πᵢ(a) Q̂ᵢ(s, a)
    return Estimate((policy.probs * q).sum(-1), q, (policy.probs * spread).sum(-1))


def prediction(
    value: Value,
    critic: AnyCritic,
    context: Float[Array, "*batch agent width"],
    action: Int[Array, "*batch agent"],
    estimated: Estimate,
) -> Float[Array, "*batch agent"]:
    """What the critic, of which `estimated` is the estimate, says of the transition that `action`
    made."""
    q = estimated.action_values
    if isinstance(value, Embedded) and value.fit == "joint":
        q = critic.joint(context, action)
    return chosen(q, action) if advantage_is_critics(value) else q[..., 0]


def chosen(
    q: Float[Array, "*batch agent action"], action: Int[Array, "*batch agent"]
) -> Float[Array, "*batch agent"]:
    """q at the agents' own actions."""
    return jnp.where(jax.nn.one_hot(action, q.shape[-1], dtype=bool), q, 0.0).sum(-1)
