"""Benchmark of marginal estimators: cost and error of the average over the other agents' actions.

Critics are random and have the size that training uses, and policies are random, for several
numbers of agents. Every estimator is compared with a plain implementation, a network of all inputs
that is evaluated at all K joint actions at once. Times are those of the average and its gradient
with respect to the critic's parameters, without the computation of the context, once per state for
any critic. Cases take turns in every round, and times are medians.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from perla.algos.actor_critic import create_critic
from perla.algos.values import create_value
from perla.analysis import figures
from perla.distributions import Categorical
from perla.envs.protocol import Observation, Spec
from perla.marginal.estimators import IndependentSamples
from perla.methods.estimators import LARGEST_ENUMERATION, Analytic, Exact, Gaussian, Sampled
from perla.methods.ppo import PPO
from perla.methods.values import Embedded, Multilinear, Network

AGENTS = (2, 3, 5, 8, 10, 20, 50)
KS = (1, 5, 10, 100, 250)
LATIN_KS = (2, 5, 11, 97, 251)
"""The prime numbers nearest to these, as the Latin sampler needs."""
ACTIONS, FEATURES, STATES = 6, 32, 64
REPEATS = 64
"""Estimates per state, for the variance."""


class Case(NamedTuple):
    """An estimator with a critic that it supports."""

    agents: int
    name: str
    k: float
    """Number of joint actions at which the critic is evaluated; ∞ for the closed forms."""
    value: Embedded
    plain: bool = False


def cases(agents: int) -> Iterator[Case]:
    """Yield all cases with this number of agents."""
    for k in KS:
        first = Embedded(
            critic_model=Network(action_fusion="first"), estimator=Sampled(num_samples=k)
        )
        yield Case(agents, "plain", k, first, plain=True)
    for k in KS:
        yield Case(agents, "iid", k, Embedded(estimator=Sampled(num_samples=k)))
    for k in LATIN_KS:
        yield Case(agents, "latin", k, Embedded(estimator=Sampled(num_samples=k, sampler="latin")))
    if ACTIONS ** (agents - 1) <= LARGEST_ENUMERATION:
        yield Case(agents, "exact", ACTIONS ** (agents - 1), Embedded(estimator=Exact()))
    yield Case(agents, "gaussian", math.inf, Embedded(estimator=Gaussian()))
    closed = Embedded(critic_model=Multilinear(), estimator=Analytic())
    yield Case(agents, "analytic", math.inf, closed)


def measure(rounds: int = 5, agents: tuple[int, ...] = AGENTS) -> list[dict[str, Any]]:
    """Measure each case; one row each.

    A row has the microseconds per state, the variance of the estimate and its root mean square
    error against `Exact` (both relative to the critic's variance over the other agents' actions),
    and the memory of the computation.
    """
    rows = []
    for count in agents:
        benchmarks = [_Benchmark(case) for case in cases(count)]
        for _ in range(rounds):
            for benchmark in benchmarks:
                benchmark.run()
        rows += [benchmark.row() for benchmark in benchmarks]
    return rows


def picture(rows: list[dict[str, Any]]) -> Figure:
    """Plot the time per state against the number of agents, for one K of each estimator."""
    shown = {"plain": 100, "iid": 100, "latin": 11, "gaussian": math.inf, "analytic": math.inf}
    lines = {
        f"{name}, K = {'∞' if math.isinf(k) else k}": [
            row["µs/state"] for row in rows if row["estimator"] == name and row["K"] == k
        ]
        for name, k in shown.items()
    }
    return figures.against(
        sorted({row["agents"] for row in rows}),
        lines,
        xlabel="Agents",
        ylabel="Microseconds per state",
        log_y=True,
    )


class _Benchmark:
    def __init__(self, case: Case) -> None:
        self.case = case
        agents = case.agents
        spec = Spec("random", agents, FEATURES, FEATURES, (ACTIONS,) * agents, None, "common")
        key_net, key_obs, key_policy, self.key = jax.random.split(jax.random.key(agents), 4)
        critic = create_critic(PPO(value=case.value), spec, key_net)
        observation = Observation(
            jax.random.normal(key_obs, (1, STATES, agents, FEATURES)),
            jnp.zeros((1, STATES, FEATURES)),
            jnp.ones((1, STATES, agents, ACTIONS), bool),
        )
        hidden_state = critic.body.initial_state((STATES,))
        contexts, _ = critic.context(observation, hidden_state, jnp.zeros((1, STATES), bool))
        context = contexts[0]
        logits = jax.random.normal(key_policy, (STATES, agents, ACTIONS))
        policy = Categorical(jax.nn.log_softmax(logits))
        value = create_value(case.value, spec)

        def plain(critic: Any, key: Any) -> Any:
            draws = IndependentSamples(int(case.k)).draw(policy, key)
            values = jax.vmap(lambda actions: critic.joint(context, actions))(draws.actions)
            return (draws.weights[..., None] * values).sum(0)[..., 0]

        def average(critic: Any, key: Any) -> Any:
            return value.estimate(critic, context, policy, key).value

        values = plain if case.plain else average
        gradient = jax.jit(jax.grad(lambda critic, key: values(critic, key).mean()))
        self.compiled = gradient.lower(critic, self.key).compile()
        self.critic = critic
        self.seconds: list[float] = []
        keys = jax.random.split(self.key, REPEATS)
        found = jax.jit(lambda critic: jax.lax.map(lambda key: values(critic, key), keys))(critic)
        self.estimates = np.asarray(found, float)
        self.exact = math.nan
        draws = IndependentSamples(REPEATS).draw(policy, self.key)
        joint = jax.lax.map(lambda actions: critic.joint(context, actions), draws.actions)
        self.scale = float(np.asarray(joint, float).var(axis=0, ddof=1).mean())
        if ACTIONS ** (agents - 1) <= LARGEST_ENUMERATION:
            exact_value = create_value(case.value.replace(estimator=Exact()), spec)
            exact = exact_value.estimate(critic, context, policy, self.key).value
            error = ((self.estimates - np.asarray(exact, float)[None]) ** 2).mean()
            self.exact = float(np.sqrt(error / self.scale))

    def run(self) -> None:
        start = time.perf_counter()
        jax.block_until_ready(self.compiled(self.critic, self.key))
        self.seconds.append(time.perf_counter() - start)

    def row(self) -> dict[str, Any]:
        memory: Any = self.compiled.memory_analysis()
        return {
            "agents": self.case.agents,
            "estimator": self.case.name,
            "K": self.case.k,
            "µs/state": 1e6 * statistics.median(self.seconds) / STATES,
            "variance": float(self.estimates.var(axis=0, ddof=1).mean() / self.scale),
            "error against exact": self.exact,
            "MiB": memory.temp_size_in_bytes / 2**20,
        }
