"""A diagnosis: the noise of a method in an environment by its causes, and a forecast."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.algos.learner import Learner
from perla.algos.ppo import Algorithm
from perla.analysis.stats import LEVEL, RESAMPLES, Score
from perla.envs.protocol import Env
from perla.envs.wrappers import AutoReset
from perla.errors import UserError
from perla.loops.anakin import Trainer
from perla.methods.ppo import GAE, PPO
from perla.types import Float, PRNGKeyArray
from perla.variance.branches import Branches, branch
from perla.variance.components import ESTIMATORS, Components, estimate
from perla.variance.critic import FixedLearner
from perla.variance.states import Visits, collect

PARTS = {
    "others": "the others' actions at the same step",
    "others_later": "the others' later actions",
    "own_later": "the agent's own later actions",
    "environment": "the environment, at this step and later",
    "critic": "the critic's error (bias)",
}
"""Parts of the mean squared error of an advantage."""
AT_ONCE, UPDATES = 256, 8
"""Visits that are continued together, and updates between two reports of progress."""
WEIGHTS = 2**24
"""Weights of visits that are held at once."""

Progress = Callable[[str, int, int], None]
"""Called with a stage, and how much of how much of it is done."""


class Diagnosis(NamedTuple):
    """The noise of a method's advantages and policy gradients, for each λ, with 95% intervals."""

    lambdas: tuple[float, ...]
    gae_lambda: float
    """The method's own λ, one of them; the forecast's."""
    visits: int
    mean_square: tuple[Score, ...]
    """E (A − A*)² of the estimated advantage A and the true one A*, in the learner's units."""
    parts: Mapping[str, tuple[Score, ...]]
    """The share of each of `PARTS` in it. The shares add up to 1."""
    removed: Mapping[str, tuple[Score, ...]]
    """The share of the policy gradient's noise that each estimator with exact critics removes."""
    snr: tuple[Score, ...]
    """The policy gradient's signal-to-noise ratio at one step of one agent: ‖E g‖² / E ‖g − E g‖²,
    given the state."""
    gain: tuple[Score, ...]
    """By how much policy embedding can raise it at most: 0.1 is a tenth."""
    gain_by_averaging: tuple[Score, ...]
    """The part of the gain that averaging over the others' actions has."""
    gain_by_critic: tuple[Score, ...]
    """The part that a critic without error has."""
    critic_error: Score
    """Root of the mean squared error of the critic's values of states."""

    @property
    def place(self) -> int:
        """The place of the method's own λ."""
        return self.lambdas.index(self.gae_lambda)

    @property
    def forecast(self) -> str:
        """The forecast in one sentence."""
        i = self.place
        return (
            f"With λ-returns (λ = {self.gae_lambda:g}) policy embedding can raise the policy "
            f"gradient's signal-to-noise ratio here by at most {percent(self.gain[i])}: "
            f"{percent(self.gain_by_averaging[i])} by averaging over the others' actions, and "
            f"{percent(self.gain_by_critic[i])} by a critic without error."
        )


def percent(score: Score) -> str:
    """A share and its interval in per cent."""
    point, low, high = (
        "–"
        if math.isnan(x)
        else "∞"
        if math.isinf(x)
        else f"{100 * x:z.1f}"
        if abs(x) < 0.0995
        else f"{100 * x:,.0f}"
        for x in score
    )
    return f"{point}% [{low}, {high}]"


def diagnose(
    env: Env,
    config: PPO,
    *,
    steps: int,
    states: int,
    lambdas: Sequence[float],
    seed: int,
    progress: Progress = lambda stage, done, total: None,
) -> Diagnosis:
    """Train for `steps` environment steps, then branch from `states` visited states.

    Raises `UserError` if a number in training is not finite, or if the policy meets no reward.
    """
    fixed, runner_state, key = train(env, config, steps, seed, progress)
    assert isinstance(config.returns, GAE), "`critic.check` refuses others"
    gae_lambda = config.returns.gae_lambda
    chosen = tuple(sorted({*lambdas, gae_lambda}))
    visits, components = measure(
        env, fixed, runner_state, key, states=states, lambdas=chosen, progress=progress
    )
    return summarise(visits, components, chosen, gae_lambda, seed)


def train(
    env: Env, config: PPO, steps: int, seed: int, progress: Progress
) -> tuple[FixedLearner, Any, PRNGKeyArray]:
    """The learner after `steps` environment steps, its environments, and the key that training
    would have split next."""
    trainer = Trainer(env, config, seeds=(seed,), steps=max(steps, 1), vectorise=False)
    population, done = trainer.init(), 0
    while done < steps:
        population, done = trainer.train(population, steps, UPDATES)
        progress("train", done, steps)
    (fault,) = trainer.faults(population)
    if fault is not None:
        raise UserError(f"{env.spec.id}, seed {seed}: {fault}; see the causes in reliability.md")
    (state,) = population
    assert isinstance(state.learner, Learner)
    fixed = FixedLearner(Algorithm(config, env.spec), state.learner)
    return fixed, state.runner_state, state.key


def measure(
    env: Env,
    fixed: FixedLearner,
    runner_state: Any,
    key: PRNGKeyArray,
    *,
    states: int,
    lambdas: Sequence[float],
    progress: Progress = lambda stage, done, total: None,
) -> tuple[Visits, Components]:
    """Visits of so many states, and the components at each. Raises `UserError` if the policy meets
    no reward."""
    key_collect, key_branch = jax.random.split(key)
    lam = jnp.asarray(lambdas, jnp.float32)
    envs = AutoReset(env, fixed.algorithm.config.num_envs)
    rollouts = -(-states // envs.num_envs)
    collected = jax.jit(partial(collect, envs))
    found: list[Visits] = []
    for number, key in enumerate(jax.random.split(key_collect, rollouts)):
        fixed, runner_state, visits = collected(fixed, runner_state, key, lam)
        found.append(visits)
        progress("visit", number + 1, rollouts)
    visits = jax.tree.map(lambda *x: jnp.concatenate(x)[:states], *found)
    if not visits.rewarded.any():
        raise UserError(
            f"{env.spec.id}: no reward in {states:,} rollouts of the policy, and without any there "
            "is nothing to forecast; train it for more steps"
        )

    parts = -(-states // AT_ONCE)
    size = -(-states // parts)
    keys = jax.random.split(key_branch, states)
    branched = jax.jit(partial(branch, env))
    branches: list[Branches] = []
    for part in range(parts):
        # The last part is filled up with visits from the beginning, so that one program does all.
        rows = (part * size + jnp.arange(size)) % states
        some = jax.tree.map(lambda x, rows=rows: x[rows], visits)
        branches.append(jax.tree.map(np.asarray, branched(fixed, some, keys[rows], lam)))
        progress("branch", min((part + 1) * size, states), states)
    joined = jax.tree.map(lambda *x: np.concatenate(x)[:states], *branches)
    return visits, estimate(joined, np.asarray(visits.value))


# --- Means and intervals ------------------------------------------------------------------------


def means(
    visits: Visits, components: Components, weights: Float[np.ndarray, "resample visit"]
) -> dict[str, Float[np.ndarray, "resample lam"]]:
    """Means over all steps that enter the losses: of the parts, of Var[G | s, aᵢ] (`whole`), of the
    critic's squared error, and of the policy gradient's signal and noise."""
    now, later = np.asarray(visits.now, float)[:, None], np.asarray(visits.later, float)
    count = weights @ np.asarray(visits.counted, float)[:, None]
    terms = {
        "others": now * components.others,
        "others_later": later * components.others,
        "own_later": later * components.own,
        "environment": (now + later) * components.environment,
        "critic": now * components.bias,
        "whole": now * components.whole,
        "error": now * components.error[:, None],
        "signal": now * components.signal,
        **{f"noise_{name}": now * noise for name, noise in components.noise.items()},
    }
    return {name: weights @ term / count for name, term in terms.items()}


def summarise(
    visits: Visits,
    components: Components,
    lambdas: tuple[float, ...],
    gae_lambda: float,
    seed: int,
) -> Diagnosis:
    """Means over all steps, and ratios of them, with percentile-bootstrap intervals: the visits,
    each from another rollout, are drawn with replacement."""
    size = len(visits.now)
    each = [means(visits, components, weights) for weights in resamples(size, seed)]
    mean = {name: np.concatenate([rows[name] for rows in each]) for name in each[0]}
    square = np.sum([mean[name] for name in PARTS], axis=0)
    noise = {name: mean[f"noise_{name}"] for name in ESTIMATORS}
    gain = ratio(noise["critic"], noise["marginal"])
    by_averaging = ratio(noise["state"], noise["marginal"])
    by_critic = ratio(noise["critic"], noise["state"])
    return Diagnosis(
        lambdas=lambdas,
        gae_lambda=gae_lambda,
        visits=size,
        mean_square=scores(square),
        parts={name: scores(share(mean[name], square)) for name in PARTS},
        removed={
            name: scores(1 - share(noise[name], noise["critic"]))
            for name in ESTIMATORS
            if name != "critic"
        },
        snr=scores(share(mean["signal"], noise["critic"])),
        gain=scores(gain),
        gain_by_averaging=scores(by_averaging),
        gain_by_critic=scores(by_critic),
        critic_error=scores(np.sqrt(np.maximum(mean["error"], 0)))[0],
    )


def resamples(size: int, seed: int) -> Iterator[Float[np.ndarray, "resample visit"]]:
    """Weights of the visits: ones, then their counts in `RESAMPLES` draws with replacement, of
    which few are held at once."""
    generator = np.random.default_rng(seed)
    yield np.ones((1, size))
    at_once = max(1, WEIGHTS // size)
    for first in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - first)
        yield generator.multinomial(size, np.full(size, 1 / size), count).astype(float)


def ratio(
    before: Float[np.ndarray, "resample lam"], after: Float[np.ndarray, "resample lam"]
) -> Float[np.ndarray, "resample lam"]:
    """By how much less noise raises the signal-to-noise ratio: before / after − 1, at least 0, and
    infinite where none is left."""
    return np.where(after > 0, np.maximum(share(before, after) - 1, 0.0), np.inf)


def share(
    part: Float[np.ndarray, "resample lam"], whole: Float[np.ndarray, "resample lam"]
) -> Float[np.ndarray, "resample lam"]:
    """part / whole, NaN where the whole is 0: of nothing there are no shares."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole != 0)


def scores(rows: Float[np.ndarray, "resample lam"]) -> tuple[Score, ...]:
    """The first row, and the interval that the others give, for each λ."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(rows[1:], [tail, 1 - tail], axis=0, method="higher")
    return tuple(Score(*map(float, row)) for row in zip(rows[0], low, high, strict=True))
