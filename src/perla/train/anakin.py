"""The whole loop on the device: rollout, update and evaluation, jitted as one."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.algos import ppo
from perla.envs.protocol import Env
from perla.envs.wrappers import AutoReset
from perla.nets.actors import Actor
from perla.train.evaluate import evaluate
from perla.train.rollout import Finished, Scene, begin, rollout
from perla.types import Array, Float, Metrics, PRNGKeyArray


class Run(NamedTuple):
    """All that changes while one seed trains; what a checkpoint holds."""

    learner: ppo.Learner
    scene: Scene
    key: PRNGKeyArray
    best: Actor
    """The actor of the best evaluation so far."""
    best_return: Float[Array, ""]


class Trainer:
    """Trains `config` on `env`, once for every seed.

    On a CPU each seed is a computation of its own, and they run side by side on its cores; on
    an accelerator they are one computation, vectorised over seeds. On a CPU, and only there, a
    seed's results are the same to the bit whichever other seeds are trained beside it.
    """

    def __init__(
        self,
        env: Env,
        config: ppo.PPO,
        *,
        seeds: tuple[int, ...],
        updates: int,
        eval_episodes: int = 32,
    ) -> None:
        self.env, self.config, self.seeds = env, config, seeds
        self.copies = AutoReset(env, config.copies)
        self.algorithm = ppo.Algorithm(config, env.spec, updates)
        self.eval_episodes = eval_episodes
        self._begin = jax.jit(self._begin_seed)
        self._advance = jax.jit(self._advance_seed, donate_argnums=0)

    def _begin_seed(self, key: PRNGKeyArray) -> Run:
        key_learner, key_scene, key = jax.random.split(key, 3)
        learner = self.algorithm.init(key_learner)
        scene = begin(self.copies, learner.actor, key_scene)
        return Run(learner, scene, key, learner.actor, jnp.float32(-jnp.inf))

    def _advance_seed(self, run: Run, updates) -> tuple[Run, Metrics]:
        """`updates` times collect and improve, then evaluate."""

        def update(carry):
            run, sums, finished, i = carry
            run, metrics, more = self._update_once(run)
            sums = jax.tree.map(jnp.add, sums, metrics)
            return run, sums, jax.tree.map(jnp.add, finished, more), i + 1

        shapes = jax.eval_shape(self._update_once, run)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[1:])
        run, sums, finished, _ = jax.lax.while_loop(
            lambda carry: carry[-1] < updates, update, (run, *zeros, jnp.int32(0))
        )
        metrics = jax.tree.map(lambda x: x / updates, sums)
        metrics["train_return"] = finished.returns / finished.count
        return self._evaluate(run, metrics)

    def _update_once(self, run: Run) -> tuple[Run, Metrics, Finished]:
        key, key_rollout, key_update = jax.random.split(run.key, 3)
        scene, trajectory, finished = rollout(
            self.copies, run.learner.actor, run.scene, key_rollout, self.config.horizon
        )
        learner, metrics = self.algorithm.update(run.learner, trajectory, key_update)
        return run._replace(learner=learner, scene=scene, key=key), metrics, finished

    def _evaluate(self, run: Run, metrics: Metrics) -> tuple[Run, Metrics]:
        greedy = jnp.arange(2 * self.eval_episodes) < self.eval_episodes
        # Evaluation draws from a key of its own, so that it leaves training as it is.
        key = jax.random.fold_in(run.key, 0)
        episodes = evaluate(self.env, run.learner.actor, key, greedy)
        metrics |= split_scores(episodes, self.eval_episodes)
        better = metrics["return"] >= run.best_return
        best = jax.tree.map(partial(jnp.where, better), run.learner.actor, run.best)
        best_return = jnp.where(better, metrics["return"], run.best_return)
        return run._replace(best=best, best_return=best_return), metrics

    def init(self) -> list[Run]:
        return [self._begin(jax.random.key(seed)) for seed in self.seeds]

    def advance(self, runs: list[Run], updates: int):
        results = [self._advance(run, jnp.int32(updates)) for run in runs]
        runs = [run for run, _ in results]
        return runs, [jax.tree.map(float, m) for _, m in results]


def split_scores(episodes, greedy: int) -> Metrics:
    """Mean return and length of the first `greedy` episodes, and return of the sampled rest."""
    return {
        "return": episodes.returns[:greedy].mean(),
        "episode_length": episodes.lengths[:greedy].mean(),
        "return_sampled": episodes.returns[greedy:].mean(),
    }
