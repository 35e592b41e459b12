"""The training state of each seed, and the results of its evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.algos.protocol import LearnerState
from perla.loops import nonfinite
from perla.loops.evaluate import Episodes
from perla.loops.nonfinite import Fault, NonFinite
from perla.loops.rollout import RunnerState
from perla.machine import cores
from perla.nets.actors import AnyActor
from perla.types import Array, Float, Int, Metrics, PRNGKeyArray

MAX_UPDATES = 2**31 - 1
"""No limit on the updates of one call of a trainer."""


class IntervalStats(NamedTuple):
    """Sums over the updates of an interval so far, from which its training metrics follow."""

    metrics: Metrics
    """Sums of the learner's metrics."""
    returns: Float[Array, ""]
    """Sum of the returns of finished training episodes."""
    episodes: Int[Array, ""]
    """Number of these episodes."""
    updates: Int[Array, ""]
    dropped: Int[Array, ""]
    """Number of training episodes that were dropped because a host environment failed."""

    @classmethod
    def zero(cls, names: Iterable[str]) -> IntervalStats:
        """The sums before the first update, of metrics with these `names`."""
        metrics = {name: jnp.float32(0.0) for name in names}
        return cls(metrics, jnp.float32(0.0), jnp.int32(0), jnp.int32(0), jnp.int32(0))

    def add(
        self, metrics: Metrics, returns: Float[Array, ""], episodes: Int[Array, ""]
    ) -> IntervalStats:
        """The sums after one more update, with its `metrics`, and the sum of the returns of the
        `episodes` that ended in its rollout."""
        sums = {name: total + metrics[name] for name, total in self.metrics.items()}
        return IntervalStats(
            sums, self.returns + returns, self.episodes + episodes, self.updates + 1, self.dropped
        )

    def means(self) -> Metrics:
        """The metrics of the interval; NaN where there was nothing to measure."""
        means = {name: total / self.updates for name, total in self.metrics.items()}
        return means | {"train_return": self.returns / self.episodes}


class SeedState(NamedTuple):
    """All that changes while one seed trains. A checkpoint holds it for every seed."""

    learner: LearnerState
    runner_state: RunnerState | None
    """State of the environments; None for host environments, which a resumed run resets."""
    key: PRNGKeyArray
    interval: IntervalStats
    """The training since the last evaluation."""
    steps: Int[Array, ""]
    """Environment steps so far, summed over environments."""
    best_actor: AnyActor
    """The actor with the highest greedy return in an evaluation so far."""
    best_return: Float[Array, ""]
    """That return."""
    fault: Fault
    """The first number that was not finite. A seed with a fault trains no further."""

    @classmethod
    def initial(
        cls,
        learner: LearnerState,
        runner_state: RunnerState | None,
        key: PRNGKeyArray,
        metric_names: Iterable[str],
    ) -> SeedState:
        """The state before the first step. `metric_names` are those of the learner's metrics."""
        return cls(
            learner,
            runner_state,
            key,
            IntervalStats.zero(metric_names),
            jnp.int32(0),
            learner.actor,
            jnp.float32(-jnp.inf),
            Fault.none(),
        )

    def after_evaluation(self, episodes: Episodes, metrics: Metrics) -> SeedState:
        """Record an evaluation of the current actor, given its `episodes` and their `metrics`, and
        begin the next interval.

        The actor becomes the best one if it and its return are finite and the return is at least
        the best so far.
        """
        actor = self.learner.actor
        is_finite = jnp.isfinite(metrics["return"]) & nonfinite.all_finite(actor)
        is_best = is_finite & (metrics["return"] >= self.best_return)
        fault = nonfinite.fault_of_evaluation(episodes.faulty, self.steps)
        return self._replace(
            interval=IntervalStats.zero(self.interval.metrics),
            best_actor=jax.tree.map(partial(jnp.where, is_best), actor, self.best_actor),
            best_return=jnp.where(is_best, metrics["return"], self.best_return),
            fault=self.fault.or_else(fault),
        )

    def unwrap_key(self) -> SeedState:
        """The state with its random key as plain integers."""
        return self._replace(key=jax.random.key_data(self.key))

    def wrap_key(self) -> SeedState:
        """The inverse of `unwrap_key`."""
        return self._replace(key=jax.random.wrap_key_data(jnp.asarray(self.key)))


def side_by_side(
    function: Callable[[Any], Any], arguments: Sequence[Any], at_once: int | None = None
) -> list[Any]:
    """The results of a jitted `function` for each of the `arguments`, `at_once` at a time (default:
    as many as there are cores).

    A device carries out the calls of one thread in order, but those of several threads at the same
    time. The first call precedes the others, so that the function is compiled once.
    """
    first, *rest = arguments
    result = function(first)
    if not rest:
        return [result]
    with ThreadPoolExecutor(min(at_once or cores(), len(arguments))) as pool:
        pool.submit(jax.block_until_ready, result)
        others = pool.map(lambda argument: jax.block_until_ready(function(argument)), rest)
        return [result, *others]


def strongly_typed(x: Array) -> Array:
    """`x`, without a weak type: an update returns none, and would compile once more for it."""
    return jax.lax.convert_element_type(x, x.dtype) if x.weak_type else x


def stack(population: Sequence[SeedState]) -> SeedState:
    """The states of all seeds as NumPy arrays with a leading seed axis."""
    states = [state.unwrap_key() for state in population]
    return jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *states)


def unstack(exported: SeedState, seeds: int) -> list[SeedState]:
    """The inverse of `stack`."""
    return [jax.tree.map(lambda x, i=i: x[i], exported).wrap_key() for i in range(seeds)]


def template(state: SeedState, seeds: int) -> SeedState:
    """Shapes and types of the stacked states of `seeds` seeds, given those of one."""
    plain = jax.eval_shape(SeedState.unwrap_key, state)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((seeds, *x.shape), x.dtype), plain)


def actor(exported: SeedState, index: int, *, best: bool) -> AnyActor:
    """The best actor of the seed at position `index`, or its last one."""
    actors = exported.best_actor if best else exported.learner.actor
    return jax.tree.map(lambda x: jnp.asarray(x[index]), actors)


def faults(
    population: Sequence[SeedState], metric_names: Callable[[], Iterable[str]]
) -> list[NonFinite | None]:
    """The fault of every seed, None for a seed without one.

    `metric_names` returns the names of an update's metrics; it is called only if there is a fault.
    """
    return [nonfinite.describe(state.fault, state.learner, metric_names) for state in population]


def reached(steps: Any, faulty: Any, until: int) -> int:
    """The steps that every seed has made, at most `until`, given the `steps` of the seeds. Those
    that are `faulty` train no further and count as having made all."""
    return int(np.where(faulty, until, np.minimum(steps, until)).min())


def evaluation_metrics(episodes: Episodes, greedy: int) -> dict[str, Any]:
    """The metrics of an evaluation whose first `greedy` episodes used the most likely actions and
    whose others sampled: numbers of NumPy or of JAX, as those of the episodes are."""
    return {
        "return": episodes.returns[:greedy].mean(),
        "return_sampled": episodes.returns[greedy:].mean(),
        "episode_length": episodes.lengths[:greedy].mean(),
        "win_rate": episodes.wins[:greedy].mean(),
        "win_rate_sampled": episodes.wins[greedy:].mean(),
    }


def join(parts: Sequence[Episodes], per_part: int, episodes: int) -> Episodes:
    """The first `episodes` greedy and the first `episodes` sampled ones of all parts, each of which
    has `per_part` greedy ones and then as many sampled ones."""
    halves = slice(None, per_part), slice(per_part, None)

    def joined(name: str) -> Any:
        columns = [getattr(part, name) for part in parts]
        both = (np.concatenate([column[half] for column in columns]) for half in halves)
        return np.concatenate([half[:episodes] for half in both])

    faulty = np.any([part.faulty for part in parts], axis=0)
    return Episodes(joined("returns"), joined("lengths"), joined("wins"), faulty)


def measured(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one seed as Python numbers, without those that are NaN because there was
    nothing to measure."""
    numbers = {name: np.asarray(value).item() for name, value in metrics.items()}
    return {name: value for name, value in numbers.items() if not np.isnan(value)}
