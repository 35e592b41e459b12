"""Policy embedding for anyone's critic: whatever it is written with, it stays as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perla.distributions import Categorical, Policy
from perla.errors import UserError
from perla.marginal.estimators import combine, draw, expectation
from perla.methods.aggregators import Aggregator, Mean
from perla.methods.estimators import Analytic, Auto, Estimator, Exact, Sampled, resolve
from perla.types import Array, Float, PRNGKeyArray

AUTO, MEAN = Auto(), Mean()

Critic = Callable[[Array], Array]
"""From joint actions to what they are worth to every agent: `[*batch, agent]` (or, continuous,
`[*batch, agent, dimension]`) → `[*batch, agent]` or `[*batch, agent, out]`."""


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
    """What `critic` expects if the others follow `policies`: E over a₋ᵢ of critic(a)ᵢ.

        q = perla.marginalise(lambda joint: network(parameters, state, joint), logits, key)

    `policies` are logits `[*batch, agent, action]`, or a `Categorical`, `Gaussian` or `Squashed` of
    `perla.distributions`. All agents share the joint actions that are drawn, so agent i's value
    must not depend on agent i's own entry: V(s, a₋ᵢ), or Q(s, ·, a₋ᵢ) with an output for every own
    action. A critic that takes the own action too, Q(s, aᵢ, a₋ᵢ), is given it as `own`
    (`[*batch, agent]`), and is evaluated once for each agent.

    Where all joint actions at once would take more than `memory` MiB, they are drawn and averaged
    part by part (by the mean; the other aggregators hold them all).

    The result has the shape of the critic's, and gradients with respect to everything: to keep
    them out of the policies, hand them over under `jax.lax.stop_gradient`.

    Raises `UserError` for shapes that do not fit, an estimator that cannot be, and a critic whose
    value depends on the own entry. The last is found out with stand-ins for whatever is being
    traced; if a mask is among these, make it inside the critic, or pass `check=False`.
    """
    if not isinstance(policies, Policy):
        policies = Categorical(jax.nn.log_softmax(jnp.asarray(policies)))
    continuous = policies.choices is None
    if len(policies.shape) < 1 + continuous:
        raise UserError(f"policies of shape {policies.shape}: expected [*batch, agent, action]")
    joint = jax.ShapeDtypeStruct(policies.shape, float if continuous else int)
    lead = policies.batch
    if own is not None and own.shape != joint.shape:
        raise UserError(f"own of shape {own.shape}: the policies' actions have {joint.shape}")
    out = jax.eval_shape(critic, joint).shape
    if out[: len(lead)] != lead or len(out) > len(lead) + 1:
        raise UserError(
            f"the critic makes {out} of joint actions {joint.shape}: expected [*batch, agent] = "
            f"{lead}, or that and one axis more"
        )
    if check and own is None and lead[-1] > 1:
        agent = reads_itself(critic, policies)
        if agent is not None:
            raise UserError(
                f"the critic's value for agent {agent} depends on agent {agent}'s own action, "
                "which here is drawn with the others': leave it out (multiply by 1 − eye), give "
                "an output for each own action, or pass the own actions as `own`"
            )

    def each(actions: Array) -> Float[Array, "*batch agent out"]:
        actions = jnp.broadcast_to(actions, joint.shape)
        values = critic(actions) if own is None else with_own(critic, actions, own, len(lead) - 1)
        return values.reshape(*lead, -1)

    found = possible(estimator, policies)
    if isinstance(aggregator, Mean):
        return expectation(found, each, policies, key, memory=memory).reshape(out)
    if isinstance(found, Sampled) and found.gradient_samples:
        raise UserError(
            f"gradient_samples = {found.gradient_samples}: only the mean has gradients of a part"
        )
    return combine(aggregator, each, draw(found, policies, key)).reshape(out)


def possible(estimator: Estimator, policy: Policy) -> Sampled | Exact:
    """The estimator that is really used. Raises `UserError` where there is none."""
    if isinstance(estimator, Analytic):
        raise UserError("estimator 'analytic': nothing is known of this critic; use 'sampled'")
    if isinstance(estimator, Sampled) and estimator.num_samples == "auto":
        raise UserError("k 'auto': only a run goes on long enough to choose; give a number")
    if policy.choices is None and isinstance(estimator, Exact):
        raise UserError("estimator 'exact': continuous actions cannot be enumerated; use 'sampled'")
    found = resolve(estimator, policy.batch[-1], policy.choices)
    assert not isinstance(found, Analytic)
    return found


def with_own(critic: Critic, actions: Array, own: Array, axis: int) -> Array:
    """The critic's values where every agent's own entry is `own`; agents are along `axis`."""
    agents = actions.shape[axis]

    def of(agent: Array) -> Array:
        mine = jnp.arange(agents) == agent
        mine = mine.reshape((agents,) + (1,) * (actions.ndim - axis - 1))
        seen = jnp.where(jnp.broadcast_to(mine, actions.shape), own, actions)
        return jnp.take(critic(seen), agent, axis)

    return jnp.moveaxis(jax.vmap(of)(jnp.arange(agents)), 0, axis)


def reads_itself(critic: Critic, policy: Policy) -> int | None:
    """The first agent whose value depends on its own entry of the joint action.

    The critic is evaluated, with random stand-ins for what is being traced just now, at joint
    actions that differ in one agent's entry.
    """
    generator = np.random.default_rng(0)

    def stand_in(value: Any) -> Any:
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
        known = [stand_in(value) for value in traced.consts]

        def values(joint: np.ndarray) -> np.ndarray:
            (out,) = jax.core.eval_jaxpr(traced.jaxpr, known, joint)
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
