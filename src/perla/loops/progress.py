"""What every training loop keeps of a seed, and does with it between two evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from perla.nets.actors import AnyActor
from perla.types import Array, Float, Int, Metrics, PRNGKeyArray


class Progress(NamedTuple):
    """All that changes while one seed trains; what a checkpoint holds."""

    learner: LearnerState
    runner_state: RunnerState | None
    """Where the worlds stand; None where they are the host's, which then begin fresh episodes."""
    key: PRNGKeyArray
    steps: Int[Array, ""]
    """Environment transitions made, summed over copies."""
    best: AnyActor
    """The actor of the best evaluation so far: the one with the highest greedy return."""
    best_return: Float[Array, ""]
    fault: Fault
    """The first number that was not finite; the seed stands still from then on."""

    @classmethod
    def start(
        cls, learner: LearnerState, runner_state: RunnerState | None, key: PRNGKeyArray
    ) -> Progress:
        """Before any step."""
        return cls(
            learner,
            runner_state,
            key,
            jnp.int32(0),
            learner.actor,
            jnp.float32(-jnp.inf),
            Fault.none(),
        )

    def judged(self, played: Episodes, scores: Metrics) -> Progress:
        """After an evaluation of the present actor: the best so far, if it is finite, as its return
        is, and none was better."""
        actor = self.learner.actor
        sound = jnp.isfinite(scores["return"]) & nonfinite.finite(actor)
        better = sound & (scores["return"] >= self.best_return)
        return self._replace(
            best=jax.tree.map(partial(jnp.where, better), actor, self.best),
            best_return=jnp.where(better, scores["return"], self.best_return),
            fault=self.fault.before(nonfinite.in_rewards(played.faulty, self.steps)),
        )

    def plain(self) -> Progress:
        """With the key as numbers."""
        return self._replace(key=jax.random.key_data(self.key))

    def keyed(self) -> Progress:
        """The inverse of `plain`."""
        return self._replace(key=jax.random.wrap_key_data(jnp.asarray(self.key)))


def stack(population: Sequence[Progress]) -> Progress:
    """Seeds that are a computation each, as NumPy arrays with a leading seed axis."""
    plain = [progress.plain() for progress in population]
    return jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *plain)


def unstack(exported: Progress, seeds: int) -> list[Progress]:
    """The inverse of `stack`."""
    return [jax.tree.map(lambda x, i=i: x[i], exported).keyed() for i in range(seeds)]


def template(blueprint: Progress, seeds: int) -> Progress:
    """Shapes and types of the stacked progress of so many seeds like `blueprint`."""
    plain = jax.eval_shape(Progress.plain, blueprint)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((seeds, *x.shape), x.dtype), plain)


def actor(exported: Progress, seed: int, *, best: bool) -> AnyActor:
    """The actor of the seed at position `seed`: the best evaluated, or the last."""
    chosen = exported.best if best else exported.learner.actor
    return jax.tree.map(lambda x: jnp.asarray(x[seed]), chosen)


def faults(
    population: Sequence[Progress], metrics: Callable[[], Iterable[str]]
) -> list[NonFinite | None]:
    """The fault of every seed, each a computation of its own; `metrics` tells the names of all
    that an update measures."""
    return [nonfinite.described(one.fault, one.learner, metrics) for one in population]


def scores(played: Episodes, episodes: int) -> Metrics:
    """What an evaluation says, of which the first `episodes` were greedy and the rest sampled."""
    return {
        "return": played.returns[:episodes].mean(),
        "return_sampled": played.returns[episodes:].mean(),
        "episode_length": played.lengths[:episodes].mean(),
        "win_rate": played.wins[:episodes].mean(),
        "win_rate_sampled": played.wins[episodes:].mean(),
    }


def row(metrics: Mapping[str, Any]) -> dict[str, float]:
    """One seed's metrics as numbers, without those that there was nothing to measure for."""
    numbers = {name: np.asarray(value).item() for name, value in metrics.items()}
    return {name: value for name, value in numbers.items() if not np.isnan(value)}
