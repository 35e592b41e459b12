"""Training with JAX environments: rollout, update and evaluation are one compiled function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from perla import footprint, parallel
from perla.algos.create import create
from perla.algos.protocol import Algorithm, DataParallel, LearnerState
from perla.envs.protocol import Env
from perla.envs.wrappers import AutoReset
from perla.errors import UserError
from perla.flops import Work, work
from perla.footprint import Footprint
from perla.keys import apart
from perla.loops import nonfinite, seeds
from perla.loops.division import COMMON, Division
from perla.loops.evaluate import Episodes, episode_limit, evaluate
from perla.loops.nonfinite import Fault, NonFinite
from perla.loops.rollout import RolloutStats, RunnerState, begin, rollout
from perla.loops.seeds import MAX_UPDATES, SeedState
from perla.loops.streams import Stream, number
from perla.machine import cores
from perla.methods.method import Method
from perla.nets.actors import AnyActor
from perla.types import Array, Bool, Int, Key, Metrics, PRNGKeyArray

UNOPTIMIZED = {"xla_backend_optimization_level": 0}
"""Compiler options of programs that run once: compiling one takes longer than running it."""


class Trainer:
    """Trains `config` on `env` for `steps` environment steps with each of the `seeds`.

    The seeds are either vectorised in one computation or one computation each, side by side. The
    default is to vectorise on an accelerator but not on a CPU, where batched small matrix products
    are slow. Without vectorisation a seed's results do not depend on the other seeds, to the bit.

    With `data_parallel` N > 1 the environments of every seed are divided over the first N devices,
    each of which collects and learns from its own; the computations of several seeds follow one
    another. Raises `UserError` where learner, settings or devices do not allow it.
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
        data_parallel: int = 1,
    ) -> None:
        self.env, self.seeds, self.steps = env, seeds, steps
        self.eval_episodes = eval_episodes
        self.devices = devices or jax.devices()
        if devices is None and data_parallel == 1 and self.devices[0].platform == "cpu":
            self.devices = self.devices[:1]  # Threads use all cores of it.
        self.vectorised = self.devices[0].platform != "cpu" if vectorise is None else vectorise
        if config.num_envs % data_parallel:
            raise UserError(
                f"data_parallel = {data_parallel}: must divide num_envs = {config.num_envs}"
            )
        self.config = config
        if data_parallel > 1:  # The environments of each device.
            self.config = config.replace(num_envs=config.num_envs // data_parallel)
        self.envs = AutoReset(env, self.config.num_envs)
        try:
            self.algorithm: Algorithm = create(self.config, env.spec)
        except UserError as error:
            if data_parallel == 1:
                raise
            raise UserError(f"data_parallel = {data_parallel}: on each device {error}") from None
        by_env = self.algorithm.by_env if isinstance(self.algorithm, DataParallel) else None
        self.division = Division.create(self.devices, data_parallel, by_env)
        # Traced once for all uses.
        self._begin = jax.jit(self._begin_seed)
        self._collect_and_learn = jax.jit(self._collect_and_learn_seed)
        self._compile_lazily()

    def _compile_lazily(self) -> None:
        """Make the functions that are compiled at their first call."""
        over_seeds = jax.vmap if self.vectorised else lambda f, **_: f
        split, state = self.division.split, self._layout
        places = self.division.places(state)
        self._init = jax.jit(
            split(over_seeds(self._init_seed), COMMON, state), compiler_options=UNOPTIMIZED
        )
        train = over_seeds(self._train_seed, in_axes=(0, None, None, None))
        self._train = jax.jit(
            split(train, (state, COMMON, COMMON, COMMON), state),
            donate_argnums=0,
            out_shardings=places,
        )
        # One program plays the episodes of evaluations and, part by part, of the absolute metric.
        episodes = over_seeds(self._evaluate_seed, in_axes=(0, 0, None))
        self._episodes = jax.jit(split(episodes, COMMON, COMMON))
        self._actor = over_seeds(lambda learner: learner.actor)
        self._end_interval = jax.jit(
            split(over_seeds(self._end_seed), (state, COMMON), (state, COMMON)),
            donate_argnums=0,
            out_shardings=(places, None),
        )
        self._play = jax.jit(partial(evaluate, self.env))

    # All seeds. A population is a list of `SeedState`: one for each seed, or a single one with a
    # leading seed axis if the seeds are vectorised.

    def compile(self) -> None:
        """Compile everything by evaluating a new population, which is discarded."""
        keys = self._keys()[: 1 if self.division.mesh is not None else len(self.devices)]
        population = self._place([self._init(key) for key in keys])
        jax.block_until_ready(self.advance(population, 0))

    def work_per_step(self) -> Work:
        """The work of training for each environment step.

        If whole episodes are collected, every episode counts as long as the step limit.
        """
        steps = self.config.num_envs * self.config.length(self.env.spec.limit)
        return work(self._update, self._state_shapes, jnp.int32(0)).times(1 / steps)

    def work_per_evaluation(self, episodes: int) -> Work:
        """An upper bound of the work of evaluating one seed."""

        def evaluation(state: SeedState) -> Episodes:
            greedy = jnp.arange(2 * episodes) < episodes
            return evaluate(self.env, state.best_actor, state.key, greedy)

        # `work` counts the evaluation's loop once; it runs until the longest episode ends.
        return work(evaluation, self._state_shapes).times(episode_limit(self.env))

    def footprint(self, absolute_episodes: int = 320) -> Footprint:
        """The memory of training and of all evaluations, estimated before anything is compiled."""
        seeds_together = len(self.seeds) if self.vectorised else 1
        at_once = seeds_together if self.division.mesh is not None else cores()
        state, devices = self._state_shapes, self.division.devices
        stacked = jax.eval_shape(self._init, self._keys()[0])
        count = jax.ShapeDtypeStruct((), jnp.int32)
        training = self._train.trace(stacked, count, count, count)
        evaluation = self._episodes.trace(stacked.best_actor, stacked.key, count)
        replay = footprint.size(getattr(state.learner, "replay_state", ()))
        environments = footprint.size(state.runner_state)
        played = footprint.size(evaluation.out_info) // seeds_together
        return Footprint(
            seeds=len(self.seeds),
            at_once=len(self.seeds) if self.vectorised else min(len(self.seeds), at_once),
            learner=devices * (footprint.size(state) - replay - environments),
            replay=replay,
            environments=devices * environments,
            training=footprint.peak(training.jaxpr) // seeds_together,
            evaluation=footprint.peak(evaluation.jaxpr) // seeds_together,
            absolute=-(-absolute_episodes // self.eval_episodes) * played,
        )

    def init(self) -> list[SeedState]:
        """The population before the first step."""
        return self._place(self._each(self._init, self._keys()))

    def _keys(self) -> list[Key[Array, "*seed"]]:
        """The keys of the computations that make the population."""
        keys = [jax.random.key(seed) for seed in self.seeds]
        return [jnp.stack(keys)] if self.vectorised else keys

    def advance(
        self, population: list[SeedState], until: int
    ) -> tuple[list[SeedState], list[dict[str, float]]]:
        """Train every seed until it has made `until` steps, then evaluate it.

        The last update is completed, so a seed may exceed `until` by less than one update. Returns
        the metrics of each seed: means over these updates (none without an update), and those of
        the evaluation. A seed with a fault (see `faults`) trains no further.
        """
        return self.evaluate(self._train_population(population, until, MAX_UPDATES))

    def train(
        self, population: list[SeedState], until: int, updates: int
    ) -> tuple[list[SeedState], int]:
        """Train every seed until it has made `until` steps, with at most `updates` updates.

        Returns also the steps that every seed has made, at most `until`, where a seed with a fault
        counts as having made all. The number of updates of a call changes no result, to the bit:
        the same program makes them all.
        """
        population = self._train_population(population, until, updates)
        steps = np.hstack([np.asarray(state.steps) for state in population])
        faulty = np.hstack([np.asarray(state.fault.found) for state in population])
        return population, seeds.reached(steps, faulty, until)

    def evaluate(
        self, population: list[SeedState]
    ) -> tuple[list[SeedState], list[dict[str, float]]]:
        """Evaluate every seed, and begin the next interval. Returns the metrics as `advance`."""

        def evaluated(state):
            episodes = self._episodes(
                self._actor(state.learner), state.key, number(Stream.EVALUATION)
            )
            return self._end_interval(state, episodes)

        results = self._each(evaluated, population)
        return [state for state, _ in results], self._per_seed([metrics for _, metrics in results])

    def _train_population(
        self, population: list[SeedState], until: int, updates: int
    ) -> list[SeedState]:
        limits = jnp.int32(until), jnp.int32(updates), jnp.int32(self.steps)
        return self._each(lambda state: self._train(state, *limits), population)

    def faults(self, population: list[SeedState]) -> list[NonFinite | None]:
        """The first number of each seed that is not finite, None if all are finite."""
        if not self.vectorised:
            return seeds.faults(population, self._metric_names)
        (stacked,) = population

        def describe(index: int) -> NonFinite | None:
            fault, learner = jax.tree.map(lambda x: x[index], (stacked.fault, stacked.learner))
            return nonfinite.describe(fault, learner, self._metric_names)

        # A learner may hold a replay buffer: only that of a faulty seed is copied.
        faulty = np.asarray(stacked.fault.array) != nonfinite.NONE
        return [describe(i) if faulty[i] else None for i in range(len(self.seeds))]

    def absolute(self, population: list[SeedState], episodes: int = 320) -> list[dict[str, float]]:
        """The metrics of each seed's best actor over new episodes: `episodes` greedy ones and as
        many sampled ones."""
        parts = -(-episodes // self.eval_episodes)

        def played(state):
            actor, key = state.best_actor, state.key
            return [self._episodes(actor, key, number(Stream.ABSOLUTE, i)) for i in range(parts)]

        by_seed = jax.tree.map(np.asarray, self._each(played, population))
        if self.vectorised:
            (stacked,) = by_seed
            by_seed = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(self.seeds))]
        joined = [seeds.join(own, self.eval_episodes, episodes) for own in by_seed]
        return [seeds.measured(seeds.evaluation_metrics(own, episodes)) for own in joined]

    def export(self, population: list[SeedState]) -> SeedState:
        """The population as NumPy arrays with a leading seed axis, on any devices."""
        if self.vectorised:
            return jax.tree.map(np.asarray, population[0].unwrap_key())
        return seeds.stack(population)

    def restore(self, exported: SeedState) -> list[SeedState]:
        """The inverse of `export`."""
        if self.vectorised:
            return self._place([exported.wrap_key()])
        return self._place(seeds.unstack(exported, len(self.seeds)))

    def template(self) -> SeedState:
        """Shapes and types of the result of `export`, without computing it."""
        state = self._state_shapes
        if self.division.mesh is not None:
            init = self.division.split(self._init_seed, COMMON, self.division.layout(state))
            state = jax.eval_shape(init, jax.random.key(0))
        return seeds.template(state, len(self.seeds))

    def actor(self, exported: SeedState, index: int, *, best: bool = True) -> AnyActor:
        """The best actor of the seed at position `index`, or its last one."""
        return seeds.actor(exported, index, best=best)

    def play(self, actor: AnyActor, key: PRNGKeyArray, greedy: Bool[Array, " episode"]) -> Episodes:
        """One episode for each entry of `greedy`, with the most likely actions if it is true and
        with sampled ones otherwise."""
        return self._play(actor, key, greedy)

    def close(self) -> None:
        """Do nothing: this trainer holds no processes."""

    def _place(self, population: list[SeedState]) -> list[SeedState]:
        """Spread the population over the devices.

        Seeds that are a computation each go to the devices in turn. Vectorised seeds are sharded
        over them, or else their environments, if the devices divide their number.
        """
        devices = self.devices
        if self.division.mesh is not None:
            places = self.division.places(self._layout)
            return [jax.device_put(state, places) for state in population]
        if not self.vectorised:
            return [
                jax.device_put(state, devices[i % len(devices)])
                for i, state in enumerate(population)
            ]
        (state,) = population
        mesh = Mesh(np.array(devices), "device")
        replicated = NamedSharding(mesh, PartitionSpec())
        by_seed = NamedSharding(mesh, PartitionSpec("device"))
        by_env = NamedSharding(mesh, PartitionSpec(None, "device"))
        if len(self.seeds) % len(devices) == 0:
            return [jax.device_put(state, by_seed)]
        placed = jax.device_put(state, replicated)
        if self.config.num_envs % len(devices) == 0:
            placed = placed._replace(runner_state=jax.device_put(state.runner_state, by_env))
        return [placed]

    def _per_seed(self, metrics: list[dict[str, Array]]) -> list[dict[str, float]]:
        """The metrics of each seed as Python numbers."""
        if self.vectorised:
            stacked = {name: np.asarray(value) for name, value in metrics[0].items()}
            metrics = [{k: v[i] for k, v in stacked.items()} for i in range(len(self.seeds))]
        return [seeds.measured(seed_metrics) for seed_metrics in metrics]

    def _each(self, function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
        """The results of `function` for each of the `arguments`. Computations that share devices
        wait for each other there, so that only one of them may be under way."""
        return seeds.side_by_side(
            function, arguments, at_once=None if self.division.mesh is None else 1
        )

    @property
    def _layout(self) -> SeedState | None:
        """The division of a population's arrays, if there is one."""
        if self.division.mesh is None:
            return None
        return self.division.layout(self._state_shapes, vectorised=self.vectorised)

    # One seed.

    @cached_property
    def _state_shapes(self) -> SeedState:
        return jax.eval_shape(self._init_seed, jax.random.key(0))

    @cached_property
    def _names(self) -> list[str]:
        """The names of an update's metrics."""
        begun = partial(self._initial, metric_names=())
        state = jax.eval_shape(begun, jax.random.key(0))
        return list(jax.eval_shape(self._update, state, jnp.int32(0))[1])

    def _metric_names(self) -> list[str]:
        return self._names

    def _init_seed(self, key: PRNGKeyArray) -> SeedState:
        return self._initial(key, self._names)

    def _initial(self, key: PRNGKeyArray, metric_names: Iterable[str]) -> SeedState:
        learner, runner_state, key = self._begin(key)
        state = SeedState.initial(learner, runner_state, key, metric_names)
        return jax.tree.map(seeds.strongly_typed, state)

    def _begin_seed(self, key: PRNGKeyArray) -> tuple[LearnerState, RunnerState, PRNGKeyArray]:
        key_learner, key_envs, key = jax.random.split(key, 3)
        learner = self.algorithm.init(key_learner)
        return learner, begin(self.envs, learner.actor, parallel.own(key_envs)), key

    def _train_seed(
        self,
        state: SeedState,
        until: Int[Array, ""],
        updates: Int[Array, ""],
        total: Int[Array, ""],
    ) -> SeedState:
        def update(carry):
            state, made = carry
            state, metrics, stats = self._update(state, total)
            interval = state.interval.add(metrics, stats.returns, stats.episodes)
            return state._replace(interval=interval), made + 1

        def unfinished(carry):
            state, made = carry
            return (state.steps < until) & ~state.fault.found & (made < updates)

        return jax.lax.while_loop(unfinished, update, (state, jnp.int32(0)))[0]

    def _evaluate_seed(self, actor: AnyActor, key: PRNGKeyArray, part: Int[Array, ""]) -> Episodes:
        """As many greedy as sampled episodes: the part of a stream with that number, which leaves
        the training unchanged."""
        episodes = 2 * self.eval_episodes
        each = -(-episodes // parallel.shares())
        greedy = parallel.position() * each + jnp.arange(each) < self.eval_episodes
        played = evaluate(self.env, actor, parallel.own(apart(key, part)), greedy)
        return played.of_all_shares(episodes)

    def _end_seed(self, state: SeedState, episodes: Episodes) -> tuple[SeedState, Metrics]:
        scores = seeds.evaluation_metrics(episodes, self.eval_episodes)
        metrics = state.interval.means() | scores | {"step": state.steps}
        return state.after_evaluation(episodes, scores), metrics

    def _update(
        self, state: SeedState, total: Int[Array, ""]
    ) -> tuple[SeedState, Metrics, RolloutStats]:
        """Collect a rollout, then learn from it, in a run of `total` steps."""
        learner, runner_state, key, fault, metrics, stats = self._collect_and_learn(
            state.learner, state.runner_state, state.key, state.steps, total
        )
        state = state._replace(
            learner=learner,
            runner_state=runner_state,
            key=key,
            steps=state.steps + stats.steps,
            fault=fault,
        )
        return state, metrics, stats

    def _collect_and_learn_seed(
        self,
        learner: LearnerState,
        runner_state: RunnerState,
        key: PRNGKeyArray,
        steps: Int[Array, ""],
        total: Int[Array, ""],
    ) -> tuple[LearnerState, RunnerState, PRNGKeyArray, Fault, Metrics, RolloutStats]:
        key, key_rollout, key_update = jax.random.split(key, 3)
        runner_state, trajectory, stats = rollout(
            self.envs,
            learner.actor,
            runner_state,
            parallel.own(key_rollout),
            self.config.length(self.env.spec.limit),
            whole_episodes=self.config.rollout_length is None,
        )
        learner, metrics = self.algorithm.update(
            learner, trajectory, parallel.own(key_update), steps / total
        )
        fault = nonfinite.find_fault(trajectory, learner, metrics, steps)
        return learner, runner_state, key, fault, metrics, parallel.total(stats)
