"""The whole loop on the device: rollout, update and evaluation, jitted as one."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from perla.algos.create import create
from perla.algos.protocol import Algorithm
from perla.envs.protocol import Env
from perla.envs.wrappers import AutoReset
from perla.flops import Work, work
from perla.loops import nonfinite
from perla.loops import progress as seeds
from perla.loops.evaluate import Episodes, episode_limit, evaluate
from perla.loops.nonfinite import NonFinite
from perla.loops.progress import Progress
from perla.loops.rollout import RolloutStats, begin, rollout
from perla.methods.recipes import Method
from perla.nets.actors import AnyActor
from perla.types import Array, Bool, Int, Metrics, PRNGKeyArray


class Trainer:
    """Trains `config` on `env` for `steps` environment steps, once for every seed.

    Seeds are either one computation, vectorised over them, or a computation each, spread over
    the devices. By default they are vectorised on an accelerator and apart on a CPU, where
    batches of small matrix products are slow; and apart, a seed's results are the same to the
    bit whichever others are trained beside it.
    """

    def __init__(
        self,
        env: Env,
        config: Method,
        *,
        seeds: tuple[int, ...],
        steps: int,
        eval_episodes: int = 32,
        vectorise: bool | None = None,
        devices: list[jax.Device] | None = None,
    ) -> None:
        self.env, self.config, self.seeds, self.steps = env, config, seeds, steps
        self.eval_episodes = eval_episodes
        self.devices = devices or jax.devices()
        self.vectorised = self.devices[0].platform != "cpu" if vectorise is None else vectorise
        self.copies = AutoReset(env, config.num_envs)
        self.algorithm: Algorithm = create(config, env.spec)
        over_seeds = jax.vmap if self.vectorised else lambda f, **_: f
        self._begin = jax.jit(over_seeds(self._begin_one))
        self._advance = jax.jit(over_seeds(self._advance_one, in_axes=(0, None)), donate_argnums=0)
        self._play = jax.jit(partial(evaluate, env))
        self._absolute = jax.jit(
            over_seeds(self._absolute_one, in_axes=(0, None)), static_argnums=1
        )

    # Seeds, together or apart: a population is a list of `Progress`, one for each computation.

    def compile(self) -> None:
        """Compile everything, by evaluating a fresh population that is thrown away."""
        population, _ = self.advance(self.init(), 0)
        jax.block_until_ready(population)

    def work_per_step(self) -> Work:
        """What training does for each environment step.

        Where episodes are collected whole, as much as the longest possible ones take.
        """
        steps = self.config.num_envs * self.config.length(self.env.spec.limit)
        return work(self._update, self._blueprint()).times(1 / steps)

    def work_per_evaluation(self, episodes: int) -> Work:
        """What an evaluation of one seed does at most."""
        blueprint = self._blueprint()

        def evaluation(progress: Progress) -> tuple[Episodes, Metrics]:
            return self._evaluate(progress.best, progress.key, episodes)

        # Its loop counts once, and runs until the longest episode is over.
        return work(evaluation, blueprint).times(episode_limit(self.env))

    def _metrics(self) -> list[str]:
        """The names of all that an update measures."""
        return list(jax.eval_shape(self._update, self._blueprint())[1])

    def _blueprint(self) -> Progress:
        """The shapes and types of one seed's progress."""
        return jax.eval_shape(self._begin_one, jax.random.key(0))

    def init(self) -> list[Progress]:
        """Every seed at its first step."""
        keys = [jax.random.key(seed) for seed in self.seeds]
        if self.vectorised:
            keys = [jnp.stack(keys)]
        return self._place([self._begin(key) for key in keys])

    def advance(
        self, population: list[Progress], until: int
    ) -> tuple[list[Progress], list[dict[str, float]]]:
        """Train every seed until it has made `until` steps, then evaluate it.

        Updates are whole, so a seed may go past `until` by less than one. Returns the metrics of
        each seed, means over the updates just made (absent if there were none).

        A seed stands still from the update on in which a number was not finite, see `faults`.
        """
        results = [self._advance(progress, jnp.int32(until)) for progress in population]
        return [progress for progress, _ in results], self._rows([rows for _, rows in results])

    def faults(self, population: list[Progress]) -> list[NonFinite | None]:
        """The first number of each seed that was not finite, None where all are."""
        if self.vectorised:
            (together,) = population
            at = range(len(self.seeds))
            population = [jax.tree.map(lambda x, i=i: x[i], together) for i in at]
        return seeds.faults(population, self._metrics)

    def absolute(self, population: list[Progress], episodes: int = 320) -> list[dict[str, float]]:
        """The best actors over fresh episodes, as many greedy as sampled."""
        return self._rows([self._absolute(progress, episodes) for progress in population])

    def export(self, population: list[Progress]) -> Progress:
        """The population as NumPy arrays with a leading seed axis, whatever the devices are."""
        if self.vectorised:
            return jax.tree.map(np.asarray, population[0].plain())
        return seeds.stack(population)

    def restore(self, exported: Progress) -> list[Progress]:
        """The inverse of `export`."""
        if self.vectorised:
            return self._place([exported.keyed()])
        return self._place(seeds.unstack(exported, len(self.seeds)))

    def template(self) -> Progress:
        """Shapes and types of what `export` returns, without computing it."""
        return seeds.template(self._blueprint(), len(self.seeds))

    def actor(self, exported: Progress, seed: int, *, best: bool = True) -> AnyActor:
        """The actor of the seed at position `seed`: the best evaluated, or the last."""
        return seeds.actor(exported, seed, best=best)

    def play(self, actor: AnyActor, key: PRNGKeyArray, greedy: Bool[Array, " episode"]) -> Episodes:
        """An episode of `actor` for each entry of `greedy`: likeliest actions, or sampled ones."""
        return self._play(actor, key, greedy)

    def close(self) -> None:
        """Nothing is held."""

    def _place(self, population: list[Progress]) -> list[Progress]:
        """Spread over the devices: computations in turn; or within the one computation its seeds,
        or else its copies, if their number allows."""
        devices = self.devices
        if not self.vectorised:
            return [
                jax.device_put(progress, devices[i % len(devices)])
                for i, progress in enumerate(population)
            ]
        (progress,) = population
        mesh = Mesh(np.array(devices), "device")
        whole = NamedSharding(mesh, PartitionSpec())
        by_seed = NamedSharding(mesh, PartitionSpec("device"))
        by_copy = NamedSharding(mesh, PartitionSpec(None, "device"))
        if len(self.seeds) % len(devices) == 0:
            return [jax.device_put(progress, by_seed)]
        placed = jax.device_put(progress, whole)
        if self.config.num_envs % len(devices) == 0:
            placed = placed._replace(runner_state=jax.device_put(progress.runner_state, by_copy))
        return [placed]

    def _rows(self, metrics: list[dict[str, Array]]) -> list[dict[str, float]]:
        if self.vectorised:
            together = {name: np.asarray(value) for name, value in metrics[0].items()}
            metrics = [{k: v[i] for k, v in together.items()} for i in range(len(self.seeds))]
        return [seeds.row(own) for own in metrics]

    # One seed.

    def _begin_one(self, key: PRNGKeyArray) -> Progress:
        key_learner, key_scene, key = jax.random.split(key, 3)
        learner = self.algorithm.init(key_learner)
        runner_state = begin(self.copies, learner.actor, key_scene)
        return Progress.start(learner, runner_state, key)

    def _advance_one(
        self, progress: Progress, until: Int[Array, ""]
    ) -> tuple[Progress, dict[str, Array]]:
        def update(carry):
            progress, sums, stats, updates = carry
            progress, metrics, more = self._update(progress)
            sums = jax.tree.map(jnp.add, sums, metrics)
            return progress, sums, jax.tree.map(jnp.add, stats, more), updates + 1

        def going(carry):
            progress = carry[0]
            return (progress.steps < until) & ~progress.fault.found

        _, *shapes = jax.eval_shape(self._update, progress)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        start = (progress, *zeros, jnp.int32(0))
        progress, sums, stats, updates = jax.lax.while_loop(going, update, start)
        metrics = {name: total / updates for name, total in sums.items()}
        metrics["train_return"] = stats.returns / stats.episodes
        # Evaluation draws from a key of its own and so leaves the training as it is.
        played, scores = self._evaluate(progress.learner.actor, progress.key, self.eval_episodes)
        return progress.judged(played, scores), metrics | scores | {"step": progress.steps}

    def _update(self, progress: Progress) -> tuple[Progress, Metrics, RolloutStats]:
        """Collect, then improve."""
        key, key_rollout, key_update = jax.random.split(progress.key, 3)
        assert progress.runner_state is not None
        runner_state, trajectory, stats = rollout(
            self.copies,
            progress.learner.actor,
            progress.runner_state,
            key_rollout,
            self.config.length(self.env.spec.limit),
            whole_episodes=self.config.rollout_length is None,
        )
        learner, metrics = self.algorithm.update(
            progress.learner, trajectory, key_update, progress.steps / self.steps
        )
        progress = progress._replace(
            learner=learner,
            runner_state=runner_state,
            key=key,
            steps=progress.steps + stats.steps,
            fault=nonfinite.find(trajectory, learner, metrics, progress.steps),
        )
        return progress, metrics, stats

    def _absolute_one(self, progress: Progress, episodes: int) -> Metrics:
        return self._evaluate(progress.best, progress.key, episodes)[1]

    def _evaluate(
        self, actor: AnyActor, key: PRNGKeyArray, episodes: int
    ) -> tuple[Episodes, Metrics]:
        greedy = jnp.arange(2 * episodes) < episodes
        played = evaluate(self.env, actor, jax.random.fold_in(key, episodes), greedy)
        return played, seeds.scores(played, episodes)
