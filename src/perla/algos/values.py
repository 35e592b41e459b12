"""What a critic's view is worth: the values of `perla.methods.values`, computed.

Every value answers three questions about a state: what is it worth (`estimate`, the baseline),
what does the critic predict for the transition that was made (`prediction`, which is regressed on
the target), and from what do returns bootstrap that lead there (`bootstrap`).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from perla.distributions import Categorical, Policy
from perla.marginal.estimators import combine, draw, expectation
from perla.methods.aggregators import Mean
from perla.methods.estimators import Analytic, Exact, Sampled, candidates, resolve
from perla.methods.values import Counterfactual, Embedded, Value
from perla.methods.values import Multilinear as MultilinearSettings
from perla.nets.critics import AnyCritic, Critic, Multilinear
from perla.types import Actions, Array, Float, Int, PRNGKeyArray


class MarginalSchedule(NamedTuple):
    """What of an average changes while a run goes on."""

    optimism: float | Float[Array, ""] = 1.0
    """What is left of an annealed optimism, 1 to 0."""
    candidate: int | Int[Array, ""] = 0
    """Which of the estimator's `rungs` is taken."""


BEGINNING = MarginalSchedule()
"""Before anything has changed."""


class Estimate(NamedTuple):
    """A critic's answer at each state, in the critic's own (normalised) units."""

    value: Float[Array, "*batch agent"]
    """The worth of the state: V(·), or V̂ marginalised over a₋ᵢ, or at the a₋ᵢ that were taken."""
    action_values: Float[Array, "*batch agent out"]
    """Q̂ᵢ(s, ·) of the agent's own actions; for state values `value` once more."""


def outputs(value: Value, actions: int) -> int:
    """Outputs of the critic for each agent: one, or one for each own action."""
    return actions if advantage_is_critics(value) else 1


def advantage_is_critics(value: Value) -> bool:
    """Whether the advantage is read off the critic (of action values) or off the returns."""
    if isinstance(value, Embedded):
        return value.critic_form == "action-value"
    return isinstance(value, Counterfactual)


def estimate(
    value: Value,
    critic: AnyCritic,
    context: Float[Array, "*batch agent width"],
    policy: Policy,
    key: PRNGKeyArray,
    marginal: MarginalSchedule = BEGINNING,
    action: Actions | None = None,
) -> Estimate:
    """The worth of each state under `policy`, where for a counterfactual value the others do their
    part of `action`."""
    if isinstance(value, Counterfactual):
        assert action is not None, "counterfactual: to what was done"
        policy = jax.lax.stop_gradient(policy)
        return worth(value, policy, critic.joint(context, action))
    if not isinstance(value, Embedded):
        assert isinstance(critic, Critic)
        v = critic.without_actions(context)
        return Estimate(v[..., 0], v)
    policy, critic = jax.lax.stop_gradient(policy), critic.gather_per_agent()
    estimator = resolved(value, policy)
    if isinstance(estimator, Analytic):
        assert isinstance(critic, Multilinear)
        return worth(value, policy, critic.expected(context, policy.moments))

    def by(estimator: Sampled | Exact, key: PRNGKeyArray) -> Float[Array, "*batch agent out"]:
        if isinstance(value.aggregator, Mean):
            # The outputs are linear in the last hidden layer, so that is what is averaged.
            hidden = partial(critic.last_hidden, context)
            average = expectation(estimator, hidden, policy, key, memory=value.memory)
            return critic.output_head(average)
        draws = draw(estimator, policy, key)
        return combine(value.aggregator, partial(critic.joint, context), draws, marginal.optimism)

    ways = [partial(by, one) for one in candidates(estimator)]
    q = ways[0](key) if len(ways) == 1 else jax.lax.switch(marginal.candidate, ways, key)
    return worth(value, policy, q)


def resolved(value: Embedded, policy: Policy) -> Sampled | Exact | Analytic:
    """The estimator that is really used for the agents of `policy`."""
    closed_form = isinstance(value.critic_model, MultilinearSettings)
    agents = policy.batch[-1]
    return resolve(value.estimator, agents, policy.choices, closed_form=closed_form)


def worth(value: Value, policy: Policy, q: Float[Array, "*batch agent out"]) -> Estimate:
    """What a critic's outputs say of the state."""
    if advantage_is_critics(value):
        assert isinstance(policy, Categorical), "an output for each of an agent's actions"
        # V̂ᵢ(s) = Σₐ πᵢ(a) Q̂ᵢ(s, a)
        return Estimate((policy.probs * q).sum(-1), q)
    return Estimate(q[..., 0], q)


def prediction(
    value: Value,
    critic: AnyCritic,
    context: Float[Array, "*batch agent width"],
    action: Actions,
    estimated: Estimate,
) -> Float[Array, "*batch agent"]:
    """What the critic, of which `estimated` is the estimate, says of the transition that `action`
    made."""
    q = estimated.action_values
    if isinstance(value, Embedded) and value.regress == "joint":
        q = critic.joint(context, action)
    return taken(value, q, action)


def bootstrap(value: Value, estimated: Estimate, action: Actions) -> Float[Array, "*batch agent"]:
    """What returns that lead to the state go on with: its worth, or, counterfactually, the critic's
    Q(s, a) of the joint `action` taken there (Foerster et al., 2018)."""
    if isinstance(value, Counterfactual):
        return chosen(estimated.action_values, action)
    return estimated.value


def taken(
    value: Value, q: Float[Array, "*batch agent out"], action: Actions
) -> Float[Array, "*batch agent"]:
    """The output that the agents' own actions select."""
    return chosen(q, action) if advantage_is_critics(value) else q[..., 0]


def chosen(
    q: Float[Array, "*batch agent action"], action: Int[Array, "*batch agent"]
) -> Float[Array, "*batch agent"]:
    """q at the agents' own actions."""
    return jnp.where(jax.nn.one_hot(action, q.shape[-1], dtype=bool), q, 0.0).sum(-1)
