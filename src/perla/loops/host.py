"""Training with host environments, which are stepped in worker processes; learning is compiled.

The environments come in two halves: while the processes step one half, the actions of the other are
computed. During an update they wait, because the update changes the policy that steps them. All
seeds are stepped in parallel, so that one message to a process, which costs as much as a step of a
fast environment, covers the environments of all seeds. A seed's results do not depend on the other
seeds, to the bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import closing
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perla import footprint
from perla.algos.create import create
from perla.algos.protocol import Algorithm, LearnerState, Trajectory
from perla.envs.processes.pool import STEP_SECONDS, Pool, Say, first_observation
from perla.envs.processes.worker import Factory
from perla.envs.protocol import HostEnv, Observation
from perla.flops import Work, work
from perla.footprint import Footprint
from perla.loops import nonfinite, seeds
from perla.loops.evaluate import Episodes, episode_limit
from perla.loops.host_envs import HostEnvs, halves, stack_trees
from perla.loops.host_evaluate import evaluate
from perla.loops.host_rollout import rollout
from perla.loops.nonfinite import Fault, NonFinite
from perla.loops.seeds import MAX_UPDATES, IntervalStats, SeedState
from perla.loops.streams import Stream, stream_key
from perla.methods.method import Method
from perla.nets.actors import AnyActor
from perla.types import Array, Float, Int, Metrics, PRNGKeyArray


class Trainer:
    """Trains `config` for `steps` environment steps with each of the `seeds`, in environments that
    `factory` makes; `env` is one of them. The learner, its numbers and the interface are those of
    `perla.loops.anakin.Trainer`.

    The environments are spread over `workers` processes, whose number changes the speed but no
    result. `perla.envs.processes.pool.Pool` replaces an environment that fails and defines
    `step_seconds`. An episode dropped for such a failure is neither learnt from nor counted. Call
    `close` at the end.
    """

    def __init__(
        self,
        env: HostEnv,
        factory: Factory,
        config: Method,
        *,
        seeds: tuple[int, ...],
        steps: int,
        eval_episodes: int = 32,
        workers: int = 1,
        step_seconds: float = STEP_SECONDS,
        say: Say = lambda text: None,
    ) -> None:
        self.env, self.factory, self.config = env, factory, config
        self.seeds, self.steps, self.eval_episodes = seeds, steps, eval_episodes
        self.workers, self.step_seconds, self.say = workers, step_seconds, say
        self.algorithm: Algorithm = create(config, env.spec)
        self.length = config.length(env.spec.limit)
        self.limit = episode_limit(env)
        self.num_eval_envs = min(2 * eval_episodes, config.num_envs)
        self._act = jax.jit(self._act_seeds)
        self._update = jax.jit(self._update_seed)

    # Environments.

    @cached_property
    def _first_observation(self) -> Observation:
        # From an environment that is closed at once: it may be a game that is needed for no more.
        with closing(self.factory()) as env:
            return first_observation(env)

    @cached_property
    def _pool(self) -> Pool:
        num_envs = {"": self.config.num_envs, "evaluation of ": self.num_eval_envs}
        groups = [
            [
                f"{purpose}seed {seed}, environment {env}"
                for seed in self.seeds
                for env in range(count)[half]
            ]
            for purpose, count in num_envs.items()
            for half in halves(count)
        ]
        return Pool(
            self.factory,
            self.env.spec,
            groups,
            alive=self._first_observation.alive is not None,
            workers=self.workers,
            step_seconds=self.step_seconds,
            say=self.say,
        )

    @cached_property
    def _envs(self) -> tuple[HostEnvs, HostEnvs]:
        """The environments of training and those of evaluations."""
        groups = list(range(len(self._pool.ranges)))
        training = len(halves(self.config.num_envs))

        def host_envs(groups: list[int], num_envs: int) -> HostEnvs:
            observation = self._empty_observation(len(self.seeds), num_envs)
            return HostEnvs(self._act, self._pool, groups, observation)

        return (
            host_envs(groups[:training], self.config.num_envs),
            host_envs(groups[training:], self.num_eval_envs),
        )

    def close(self) -> None:
        """End the processes and close the environment."""
        if "_pool" in self.__dict__:
            self._pool.close()
        self.env.close()

    # All seeds. A population is a list of `SeedState`, one for each seed.

    def compile(self) -> None:
        """Compile everything by acting and learning once on empty arrays."""
        state = self._init_seed(jax.random.key(0))
        actor, key = state.learner.actor, state.key
        all_halves = [*halves(self.config.num_envs), *halves(self.num_eval_envs)]
        for num_envs in {half.stop - half.start for half in all_halves}:
            inputs = [(actor, *self._empty_inputs(actor, num_envs), key)] * len(self.seeds)
            self._act(*stack_trees(inputs), np.int32(0), np.int32(0))
        trajectory = self._empty_trajectory(actor)
        stats = np.float32(0.0), np.int32(0)
        jax.block_until_ready(self._update(state, trajectory, key, np.float32(0.0), *stats))

    def work_per_step(self) -> Work:
        """The work of acting and learning for each environment step, without the environments'."""
        learning = work(self._update_seed, *self._update_shapes())
        return learning.times(1 / (self.config.num_envs * self.length)) + self._work_per_action()

    def work_per_evaluation(self, episodes: int) -> Work:
        """An upper bound of the work of evaluating one seed, without the environments'."""
        return self._work_per_action().times(2 * episodes * self.limit)

    def footprint(self, absolute_episodes: int = 320) -> Footprint:
        """The memory of training and of all evaluations, without the environments' processes."""
        state, trajectory, *_ = shapes = self._update_shapes()
        replay = footprint.size(getattr(state.learner, "replay_state", ()))
        learning = footprint.peak(self._update.trace(*shapes).jaxpr)
        # The trajectories of all seeds are collected before the first is learnt from.
        return Footprint(
            seeds=len(self.seeds),
            at_once=1,
            learner=footprint.size(state) - replay,
            replay=replay,
            environments=0,
            training=(1 + len(self.seeds)) * footprint.size(trajectory) + learning,
            evaluation=8 * self.eval_episodes * len(self.seeds),
            absolute=8 * absolute_episodes * len(self.seeds),
        )

    def init(self) -> list[SeedState]:
        """The population before the first step."""
        return self._reset([self._init_seed(jax.random.key(seed)) for seed in self.seeds])

    def advance(
        self, population: list[SeedState], until: int
    ) -> tuple[list[SeedState], list[dict[str, float]]]:
        """Train every seed until it has made `until` steps, then evaluate it.

        The last update is completed, so a seed may exceed `until` by less than one update. Returns
        the metrics of each seed: means over these updates (none without an update), and those of
        the evaluation. A seed with a fault (see `faults`) trains no further.
        """
        return self.evaluate(self.train(population, until, MAX_UPDATES)[0])

    def train(
        self, population: list[SeedState], until: int, updates: int
    ) -> tuple[list[SeedState], int]:
        """Train every seed until it has made `until` steps, with at most `updates` updates.

        Returns also the steps that every seed has made, at most `until`, where a seed with a fault
        counts as having made all. The number of updates of a call changes no result, to the bit.
        """
        for made in itertools.count():
            steps = np.array([int(state.steps) for state in population])
            faulty = np.array([bool(state.fault.found) for state in population])
            active = (steps < until) & ~faulty
            if made == updates or not active.any():
                return population, seeds.reached(steps, faulty, until)
            population = self.update(population, active)
        raise AssertionError("unreachable: the loop is endless")

    def evaluate(
        self, population: list[SeedState]
    ) -> tuple[list[SeedState], list[dict[str, float]]]:
        """Evaluate every seed, and begin the next interval. Returns the metrics as `advance`."""
        actors = [(state.learner.actor, state.key) for state in population]
        evaluations = self._evaluate(actors, self.eval_episodes)
        dropped = self._envs[1].take_dropped()
        rows = [
            seeds.measured(
                state.interval.means()
                | scores
                | {"step": state.steps, "dropped_episodes": state.interval.dropped + more}
            )
            for state, (_, scores), more in zip(population, evaluations, dropped, strict=True)
        ]
        population = [
            state.after_evaluation(*evaluation)
            for state, evaluation in zip(population, evaluations, strict=True)
        ]
        return population, rows

    def faults(self, population: list[SeedState]) -> list[NonFinite | None]:
        """The first number of each seed that is not finite, None if all are finite."""
        return seeds.faults(population, self._metric_names)

    def update(self, population: list[SeedState], active: np.ndarray) -> list[SeedState]:
        """One update of the seeds that are `active`: collect a rollout, then learn from it."""
        keys = [jax.random.split(state.key, 3) for state in population]
        actors, keys_rollout = stack_trees(
            [(state.learner.actor, own[1]) for state, own in zip(population, keys, strict=True)]
        )
        rollouts = rollout(
            self._envs[0],
            actors,
            keys_rollout,
            active,
            self._empty_trajectory(population[0].learner.actor),
            whole_episodes=self.config.rollout_length is None,
        )
        population, dropped = list(population), self._envs[0].take_dropped()
        for i in np.flatnonzero(active):
            state, (trajectory, stats) = population[i], rollouts[i]
            progress = np.float32(int(state.steps) / self.steps)
            returns = np.float32(sum(stats.episode_returns)), np.int32(len(stats.episode_returns))
            learner, interval, fault = self._update(
                state, trajectory, keys[i][2], progress, *returns
            )
            population[i] = state._replace(
                learner=learner,
                key=keys[i][0],
                interval=interval._replace(dropped=interval.dropped + dropped[i]),
                steps=state.steps + stats.steps,
                fault=fault,
            )
        return population

    def absolute(self, population: list[SeedState], episodes: int = 320) -> list[dict[str, float]]:
        """The metrics of each seed's best actor over new episodes: `episodes` greedy ones and as
        many sampled ones."""
        actors = [(state.best_actor, state.key) for state in population]
        evaluations = self._evaluate(actors, episodes, Stream.ABSOLUTE)
        dropped = self._envs[1].take_dropped()
        return [
            seeds.measured(scores | {"dropped_episodes": number})
            for (_, scores), number in zip(evaluations, dropped, strict=True)
        ]

    def export(self, population: list[SeedState]) -> SeedState:
        """The population as NumPy arrays with a leading seed axis, without the environments."""
        return seeds.stack(population)

    def restore(self, exported: SeedState) -> list[SeedState]:
        """The inverse of `export`, except that the environments begin new episodes."""
        population = seeds.unstack(exported, len(self.seeds))
        return self._reset([jax.tree.map(jnp.asarray, state) for state in population])

    def template(self) -> SeedState:
        """Shapes and types of the result of `export`, without computing it."""
        return seeds.template(self._state_shapes, len(self.seeds))

    def actor(self, exported: SeedState, index: int, *, best: bool = True) -> AnyActor:
        """The best actor of the seed at position `index`, or its last one."""
        return seeds.actor(exported, index, best=best)

    def play(self, actor: AnyActor, key: PRNGKeyArray, greedy: Any) -> Episodes:
        """One episode for each entry of `greedy`, with the most likely actions if it is true and
        with sampled ones otherwise."""
        return evaluate(self._envs[1], [(actor, key)], np.asarray(greedy))[0]

    def _reset(self, population: list[SeedState]) -> list[SeedState]:
        """Reset the training environments of every seed with a key derived from the seed's."""
        self._envs[0].reset(stack_trees([stream_key(s.key, Stream.RESET) for s in population]))
        return population

    def _evaluate(
        self,
        actors: list[tuple[AnyActor, PRNGKeyArray]],
        episodes: int,
        stream: Stream = Stream.EVALUATION,
    ) -> list[tuple[Episodes, Metrics]]:
        greedy = np.arange(2 * episodes) < episodes
        actors = [(actor, stream_key(key, stream)) for actor, key in actors]
        played = evaluate(self._envs[1], actors, greedy)
        return [(own, seeds.evaluation_metrics(own, episodes)) for own in played]

    def _act_seeds(self, actors, observation, hidden_state, is_first, greedy, keys, time, half):
        """`_act_seed` for every seed in turn, `[seed, env, ...]`, with the same bits as alone."""
        inputs = actors, observation, hidden_state, is_first, greedy, keys
        return jax.lax.map(lambda seed_inputs: self._act_seed(*seed_inputs, time, half), inputs)

    # One seed.

    def _init_seed(self, key: PRNGKeyArray) -> SeedState:
        return self._begin_seed(key, self._names)

    def _begin_seed(self, key: PRNGKeyArray, metric_names: Iterable[str]) -> SeedState:
        key_learner, key = jax.random.split(key)
        return SeedState.initial(self.algorithm.init(key_learner), None, key, metric_names)

    def _act_seed(self, actor, observation, hidden_state, is_first, greedy, key, time, half):
        """The actions `[env, agent]` or `[env, agent, action]` of one step, and the hidden state
        after it."""
        key = jax.random.fold_in(jax.random.fold_in(key, time), half)
        key_action, key_actor = jax.random.split(key)
        policy, hidden_state = actor(observation, hidden_state, is_first, key_actor)
        mode, action = policy.mode(), policy.sample(key_action)
        greedy = greedy.reshape(greedy.shape + (1,) * (action.ndim - 1))
        action = jnp.where(greedy, mode, action)
        return action, actor.update_state(hidden_state, action)

    def _update_seed(
        self,
        state: SeedState,
        trajectory: Trajectory,
        key: PRNGKeyArray,
        progress: Float[Array, ""],
        returns: Float[Array, ""],
        episodes: Int[Array, ""],
    ) -> tuple[LearnerState, IntervalStats, Fault]:
        """Learn from a trajectory, in which `episodes` with a sum of `returns` ended, and check it
        for numbers that are not finite.

        The policies are recomputed here, all at once, rather than recorded at every step.
        """
        trajectory, learner, metrics = self._learn(state.learner, trajectory, key, progress)
        fault = nonfinite.find_fault(trajectory, learner, metrics, state.steps)
        return learner, state.interval.add(metrics, returns, episodes), fault

    def _learn(
        self,
        learner: LearnerState,
        trajectory: Trajectory,
        key: PRNGKeyArray,
        progress: Float[Array, ""],
    ) -> tuple[Trajectory, LearnerState, Metrics]:
        def record(observation, hidden_state, is_first, action):
            policy, _ = learner.actor(observation, hidden_state, is_first)
            return policy.given(action)

        policy = jax.vmap(record)(
            trajectory.observation,
            trajectory.hidden_state,
            trajectory.is_first,
            trajectory.action,
        )
        trajectory = trajectory._replace(policy=policy)
        return trajectory, *self.algorithm.update(learner, trajectory, key, progress)

    # Shapes.

    @cached_property
    def _state_shapes(self) -> SeedState:
        return jax.eval_shape(self._init_seed, jax.random.key(0))

    def _update_shapes(self) -> tuple[Any, ...]:
        """The shapes of the arguments of `_update_seed`."""
        state = self._state_shapes
        trajectory = self._trajectory_shapes(state.learner)
        zero = jnp.float32(0.0)
        return state, trajectory, state.key, zero, zero, jnp.int32(0)

    def _trajectory_shapes(self, learner: Any) -> Any:
        return jax.eval_shape(lambda learner: self._empty_trajectory(learner.actor), learner)

    @cached_property
    def _names(self) -> list[str]:
        """The names of an update's metrics."""
        state = jax.eval_shape(partial(self._begin_seed, metric_names=()), jax.random.key(0))
        trajectory = self._trajectory_shapes(state.learner)
        shapes = state.learner, trajectory, state.key, jnp.float32(0.0)
        return list(jax.eval_shape(self._learn, *shapes)[2])

    def _metric_names(self) -> list[str]:
        return self._names

    def _work_per_action(self) -> Work:
        state = self._state_shapes
        actor, zero = state.learner.actor, np.int32(0)
        inputs = jax.eval_shape(lambda actor: self._empty_inputs(actor, 1), actor)
        return work(self._act_seed, actor, *inputs, state.key, zero, zero)

    def _empty_inputs(self, actor: AnyActor, num_envs: int) -> tuple[Any, ...]:
        """Arguments of `_act_seed`: observation, hidden state, `is_first` and `greedy`."""
        flags = np.ones(num_envs, bool)
        observation = self._empty_observation(num_envs)
        return observation, actor.initial_state((num_envs,)), flags, ~flags

    def _empty_observation(self, *batch: int) -> Observation:
        spec = self.env.spec
        mortal = self._first_observation.alive is not None
        return Observation(
            np.zeros((*batch, spec.agents, spec.obs), np.float32),
            np.zeros((*batch, spec.state), np.float32),
            np.ones((*batch, spec.agents, spec.max_actions), bool),
            np.ones((*batch, spec.agents), bool) if mortal else None,
        )

    def _empty_trajectory(self, actor: AnyActor) -> Trajectory:
        """Arrays for a rollout of one seed, without policies; `valid` everywhere."""
        spec, time, env = self.env.spec, self.length, self.config.num_envs
        agents = spec.agents
        hidden_state = actor.initial_state((env,))
        action: tuple[Any, Any] = ((time, env, agents), np.int32)
        if spec.continuous:
            action = ((time, env, agents, spec.max_actions), np.float32)
        fields: dict[str, Any] = {
            "observation": self._empty_observation(time, env),
            "is_first": np.zeros((time, env), bool),
            "valid": np.ones((time, env), bool),
            "hidden_state": np.zeros((time, *hidden_state.shape), np.float32),
            "action": np.zeros(*action),
            "policy": None,
            "reward": np.zeros((time, env, agents), np.float32),
            "terminated": np.zeros((time, env), bool),
            "truncated": np.zeros((time, env), bool),
            "final": self._empty_observation(time, env),
            "last": self._empty_observation(env),
            "last_is_first": np.zeros(env, bool),
            "last_hidden_state": np.zeros(hidden_state.shape, np.float32),
        }
        return Trajectory(**fields)
