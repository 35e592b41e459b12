"""`perla.marginalise`: policy embedding for any critic, whatever library it is written with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perla.distributions import Categorical, Policy
from perla.errors import UserError
from perla.marginal.aggregators import create_aggregator
from perla.marginal.estimators import create_fixed_estimator
from perla.methods.aggregators import Aggregator, Mean
from perla.methods.estimators import Analytic, Auto, Estimator, Exact, Sampled
from perla.types import Array, Float, PRNGKeyArray

AUTO, MEAN = Auto(), Mean()

Critic = Callable[[Array], Array]
"""A function of the joint action: `[*batch, agent]` (continuous: `[*batch, agent, dimension]`) →
every agent's value `[*batch, agent]` or values `[*batch, agent, out]`."""


def marginalise(
    critic: Critic,
    policies: Policy | Array,
    key: PRNGKeyArray,
    estimator: Estimator = AUTO,
    aggregator: Aggregator = MEAN,
    *,
    own: Array | None = None,
    check: bool = True,
    memory: float = math.inf,
) -> Array:
    """The average of `critic` over the other agents' policies: E over a₋ᵢ of critic(a)ᵢ.

        q = perla.marginalise(lambda joint: network(parameters, state, joint), logits, key)

    `policies` are logits `[*batch, agent, action]`, or a `Categorical`, `Gaussian` or `Squashed` of
    `perla.distributions`. All agents share the sampled joint actions, so agent i's value must not
    depend on agent i's own entry: V(s, a₋ᵢ), or Q(s, ·, a₋ᵢ) with one output for each own action.
    For a critic that takes the own action as an input, Q(s, aᵢ, a₋ᵢ), pass the own actions as `own`
    (`[*batch, agent]`); it is then evaluated once for each agent.

    `memory` bounds the joint actions that are held at once, in MiB: the mean is taken part by part
    beyond it, the other aggregators hold them all.

    The result has the shape of the critic's output and is differentiable in all inputs. Pass
    `jax.lax.stop_gradient(policies)` to keep gradients out of the policies.

    Raises `UserError` for shapes that do not fit, for an estimator that is impossible here, and for
    a critic whose value depends on the agent's own entry. That dependence is tested with random
    values in place of traced arrays. If one of these is a mask, make it inside the critic or pass
    `check=False`.
    """
    if not isinstance(policies, Policy):
        policies = Categorical(jax.nn.log_softmax(jnp.asarray(policies)))
    joint, lead = joint_shape(policies), policies.batch
    if own is not None and own.shape != joint.shape:
        raise UserError(f"own of shape {own.shape}: the policies' actions have {joint.shape}")
    out = output_shape(critic, joint, lead)
    if check and own is None and lead[-1] > 1:
        refuse_own_entry(critic, policies)

    def each(actions: Array) -> Float[Array, "*batch agent out"]:
        actions = jnp.broadcast_to(actions, joint.shape)
        values = critic(actions) if own is None else with_own(critic, actions, own, len(lead) - 1)
        return values.reshape(*lead, -1)

    aggregate = create_aggregator(aggregator)
    check_estimator(estimator, policies, linear=aggregate.linear)
    marginal = create_fixed_estimator(estimator, lead[-1], policies.choices)
    if aggregate.linear:
        return marginal.expectation(each, policies, key, memory=memory).reshape(out)
    return aggregate(each, marginal.draw(policies, key)).reshape(out)


def joint_shape(policies: Policy) -> jax.ShapeDtypeStruct:
    """The shape and kind of the joint actions; `UserError` for policies without agents."""
    continuous = policies.choices is None
    if len(policies.shape) < 1 + continuous:
        raise UserError(f"policies of shape {policies.shape}: expected [*batch, agent, action]")
    return jax.ShapeDtypeStruct(policies.shape, float if continuous else int)


def output_shape(
    critic: Critic, joint: jax.ShapeDtypeStruct, lead: tuple[int, ...]
) -> tuple[int, ...]:
    """The shape of the critic's output; `UserError` unless it begins with batch and agent axes."""
    out = jax.eval_shape(critic, joint).shape
    if out[: len(lead)] != lead or len(out) > len(lead) + 1:
        raise UserError(
            f"the critic makes {out} of joint actions {joint.shape}: expected [*batch, agent] = "
            f"{lead}, or that and one axis more"
        )
    return out


def check_estimator(settings: Estimator, policy: Policy, *, linear: bool) -> None:
    """Raise `UserError` for an estimator that is impossible for any critic, or with an aggregator
    that is not `linear`."""
    match settings:
        case Analytic():
            raise UserError("estimator 'analytic': nothing is known of this critic; use 'sampled'")
        case Exact() if policy.choices is None:
            raise UserError(
                "estimator 'exact': continuous actions cannot be enumerated; use 'sampled'"
            )
        case Sampled(gradient_samples=int(through)) if not linear:
            raise UserError(
                f"gradient_samples = {through}: only the mean takes its gradient from a part of "
                "the samples"
            )


def with_own(critic: Critic, actions: Array, own: Array, axis: int) -> Array:
    """The critic's values with every agent's own entry set to `own`; `axis` is the agents'."""
    agents = actions.shape[axis]

    def value_of(agent: Array) -> Array:
        is_agent = jnp.arange(agents) == agent
        is_agent = is_agent.reshape((agents,) + (1,) * (actions.ndim - axis - 1))
        joint = jnp.where(jnp.broadcast_to(is_agent, actions.shape), own, actions)
        return jnp.take(critic(joint), agent, axis)

    return jnp.moveaxis(jax.vmap(value_of)(jnp.arange(agents)), 0, axis)


def refuse_own_entry(critic: Critic, policy: Policy) -> None:
    """Raise `UserError` if an agent's value depends on its own entry of the joint action."""
    agent = own_entry_dependence(critic, policy)
    if agent is not None:
        raise UserError(
            f"the critic's value for agent {agent} depends on agent {agent}'s own action, which "
            "here is sampled with the others': leave it out (multiply by 1 − eye), give an output "
            "for each own action, or pass the own actions as `own`"
        )


def own_entry_dependence(critic: Critic, policy: Policy) -> int | None:
    """The first agent whose value depends on its own entry of the joint action, if any.

    The critic is evaluated at joint actions that differ in one agent's entry, with random values in
    place of arrays that are being traced.
    """
    generator = np.random.default_rng(0)

    def concrete(value: Any) -> Any:
        if not isinstance(value, jax.core.Tracer) or jnp.issubdtype(
            value.dtype, jax.dtypes.prng_key
        ):
            return value
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return np.zeros(value.shape, value.dtype)
        return generator.normal(size=value.shape).astype(value.dtype)

    def random() -> np.ndarray:
        if policy.choices is None:
            return generator.normal(size=policy.shape).astype(np.float32)
        return generator.integers(policy.choices, size=policy.shape).astype(np.int32)

    joint, other = random(), random()
    axis = len(policy.batch) - 1
    if policy.choices is not None:
        other = (joint + 1) % policy.choices
    traced = jax.make_jaxpr(critic)(joint)
    with jax.ensure_compile_time_eval():
        constants = [concrete(value) for value in traced.consts]

        def values(joint: np.ndarray) -> np.ndarray:
            (out,) = jax.core.eval_jaxpr(traced.jaxpr, constants, joint)
            return np.asarray(out)

        before = values(joint)
        size = np.abs(before).max(initial=0.0)
        for agent in range(joint.shape[axis]):
            index = (slice(None),) * axis + (agent,)
            changed = joint.copy()
            changed[index] = other[index]
            change = np.abs(values(changed)[index] - before[index]).max(initial=0.0)
            if change > 1e-3 * size:
                return agent
    return None
