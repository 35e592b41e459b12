"""The loop for worlds of the host: stepped in processes of their own, learnt from under `jit`.

Copies come in two halves. While the processes step one half, the actions of the other are computed;
when the update runs, the worlds stand still, because it changes the policy that they are to be
stepped by. All seeds are stepped side by side, so that a message to a process, which costs as much
as a step of a fast world, is about the copies of all of them. A seed's results are the same to the
bit whichever others are trained beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.algos.create import create
from perla.algos.protocol import Algorithm, LearnerState, Trajectory
from perla.envs.processes.pool import STEP_SECONDS, Pool, Say, first_observation
from perla.envs.processes.worker import Factory
from perla.envs.protocol import HostEnv, Observation
from perla.flops import Work, work
from perla.loops import nonfinite
from perla.loops import progress as seeds
from perla.loops.evaluate import Episodes, episode_limit
from perla.loops.nonfinite import Fault, NonFinite
from perla.loops.progress import Progress
from perla.loops.worlds import Worlds, fill, halves, part
from perla.methods.recipes import Method
from perla.nets.actors import AnyActor
from perla.types import Array, Float, Int, Key, Metrics, PRNGKeyArray


class RolloutStats(NamedTuple):
    """What a rollout amounts to."""

    steps: int
    """Environment transitions that count, summed over copies."""
    returns: list[float]
    """Of the episodes that ended."""


class Trainer:
    """Trains `config` on many copies of the world that `factory` makes, of which `env` is one, for
    `steps` environment steps, once for every seed. The same learner, numbers and interface as
    `perla.loops.anakin.Trainer`.

    The copies are spread over `workers` processes, which change the speed and no number.
    `perla.envs.processes.pool.Pool` says how a copy that fails is replaced, and defines
    `step_seconds`. An episode that is dropped is neither learnt from nor counted. Call `close` at
    the end.
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
        self.env, self.factory, self.config, self.seeds, self.steps = (
            env, factory, config, seeds, steps,
        )  # fmt: skip
        self.eval_episodes, self.workers = eval_episodes, workers
        self.step_seconds, self.say = step_seconds, say
        self.algorithm: Algorithm = create(config, env.spec)
        self.length = config.length(env.spec.limit)
        self.limit = episode_limit(env)
        self.eval_copies = min(2 * eval_episodes, config.num_envs)
        self._act = jax.jit(self._act_all)
        self._improve = jax.jit(self._improve_one)

    # The worlds.

    @cached_property
    def _first(self) -> Observation:
        # Of a copy that is let go of at once: it may be a game, which nobody plays until a film.
        with closing(self.factory()) as env:
            return first_observation(env)

    @cached_property
    def _pool(self) -> Pool:
        uses = {"": self.config.num_envs, "evaluation of ": self.eval_copies}
        groups = [
            [
                f"{use}seed {seed}, copy {copy}"
                for seed in self.seeds
                for copy in range(copies)[half]
            ]
            for use, copies in uses.items()
            for half in halves(copies)
        ]
        return Pool(
            self.factory,
            self.env.spec,
            groups,
            alive=self._first.alive is not None,
            workers=self.workers,
            step_seconds=self.step_seconds,
            say=self.say,
        )

    @cached_property
    def _worlds(self) -> tuple[Worlds, Worlds]:
        """Those that are trained in, and those of evaluations."""
        groups = list(range(len(self._pool.ranges)))
        training = len(halves(self.config.num_envs))

        def worlds(own: list[int], copies: int) -> Worlds:
            return Worlds(self._act, self._pool, own, self._seen(len(self.seeds), copies))

        return (
            worlds(groups[:training], self.config.num_envs),
            worlds(groups[training:], self.eval_copies),
        )

    def close(self) -> None:
        """End the processes, and let go of the world."""
        if "_pool" in self.__dict__:
            self._pool.close()
        self.env.close()

    # Seeds: a population is a list of `Progress`, one for each.

    def compile(self) -> None:
        """Compile everything, by acting and learning once on nothing."""
        progress = self._begin(jax.random.key(0))
        actor, key = progress.learner.actor, progress.key
        both = [*halves(self.config.num_envs), *halves(self.eval_copies)]
        for copies in {half.stop - half.start for half in both}:
            every = [(actor, *self._moment(actor, copies), key)] * len(self.seeds)
            self._act(*together(every), np.int32(0), np.int32(0))
        trajectory = self._blank(actor)
        learning = progress.learner, trajectory, key, np.float32(0.0), progress.steps
        jax.block_until_ready(self._improve(*learning))

    def work_per_step(self) -> Work:
        """What acting and learning do for each environment step; the worlds' own is not known."""
        blueprint = jax.eval_shape(self._begin, jax.random.key(0))
        trajectory = jax.eval_shape(self._blank, blueprint.learner.actor)
        progress = jnp.float32(0.0)
        given = blueprint.learner, trajectory, blueprint.key, progress, blueprint.steps
        learning = work(self._improve_one, *given)
        return learning.times(1 / (self.config.num_envs * self.length)) + self._work_per_action()

    def work_per_evaluation(self, episodes: int) -> Work:
        """What an evaluation of one seed does at most, without the worlds' own."""
        return self._work_per_action().times(2 * episodes * self.limit)

    def _work_per_action(self) -> Work:
        blueprint = jax.eval_shape(self._begin, jax.random.key(0))
        actor, key, zero = blueprint.learner.actor, blueprint.key, np.int32(0)
        moment = jax.eval_shape(lambda actor: self._moment(actor, 1), actor)
        return work(self._act_one, actor, *moment, key, zero, zero)

    def init(self) -> list[Progress]:
        """Every seed at its first step."""
        return self._settle([self._begin(jax.random.key(seed)) for seed in self.seeds])

    def advance(
        self, population: list[Progress], until: int
    ) -> tuple[list[Progress], list[dict[str, float]]]:
        """Train every seed until it has made `until` steps, then evaluate it.

        Updates are whole, so a seed may go past `until` by less than one. Returns the metrics of
        each seed, means over the updates just made (absent if there were none).

        A seed stands still from the update on in which a number was not finite, see `faults`.
        """
        found: list[dict[str, list[float]]] = [defaultdict(list) for _ in population]

        def going(seed: Progress) -> bool:
            return int(seed.steps) < until and not seed.fault.found

        while (behind := np.array([going(seed) for seed in population])).any():
            population, metrics = self.update(population, behind)
            for own, new in zip(found, metrics, strict=True):
                for name, values in new.items():
                    own[name] += values
        players = [(seed.learner.actor, seed.key) for seed in population]
        results = self._evaluate(players, self.eval_episodes)
        rows = [
            seeds.row(
                {name: np.mean(values) for name, values in own.items() if values}
                | scores
                | {"step": seed.steps}
            )
            for seed, own, (_, scores) in zip(population, found, results, strict=True)
        ]
        return [seed.judged(*own) for seed, own in zip(population, results, strict=True)], rows

    def faults(self, population: list[Progress]) -> list[NonFinite | None]:
        """The first number of each seed that was not finite, None where all are."""
        return seeds.faults(population, self._metrics)

    def _metrics(self) -> list[str]:
        """The names of all that an update measures."""
        progress = self._begin(jax.random.key(0))
        trajectory = self._blank(progress.learner.actor)
        given = progress.learner, trajectory, progress.key, jnp.float32(0.0), progress.steps
        return list(jax.eval_shape(self._improve_one, *given)[1])

    def update(
        self, population: list[Progress], behind: np.ndarray
    ) -> tuple[list[Progress], list[dict[str, list[float]]]]:
        """Let the seeds that are `behind` collect, then improve; and what there was to measure."""
        keys = [jax.random.split(seed.key, 3) for seed in population]
        players = [(seed.learner.actor, own[1]) for seed, own in zip(population, keys, strict=True)]
        actors, keys_rollout = together(players)
        rollouts = self._rollout(self._worlds[0], actors, keys_rollout, behind)
        population, improved = list(population), {}
        for i in np.flatnonzero(behind):
            seed, (trajectory, stats) = population[i], rollouts[i]
            share = np.float32(int(seed.steps) / self.steps)
            learner, measured, fault = self._improve(
                seed.learner, trajectory, keys[i][2], share, seed.steps
            )
            population[i] = seed._replace(
                learner=learner, key=keys[i][0], steps=seed.steps + stats.steps, fault=fault
            )
            improved[i] = measured, stats.returns
        # Only now, so that one seed's update is computed beside another's.
        found: list[dict[str, list[float]]] = [{} for _ in population]
        for i, (measured, returns) in improved.items():
            numbers = {name: [float(value)] for name, value in measured.items()}
            found[i] = numbers | {"train_return": returns}
        return population, found

    def absolute(self, population: list[Progress], episodes: int = 320) -> list[dict[str, float]]:
        """The best actors over fresh episodes, as many greedy as sampled."""
        results = self._evaluate([(seed.best, seed.key) for seed in population], episodes)
        return [seeds.row(scores) for _, scores in results]

    def export(self, population: list[Progress]) -> Progress:
        """The population as NumPy arrays with a leading seed axis, without the worlds."""
        return seeds.stack(population)

    def restore(self, exported: Progress) -> list[Progress]:
        """The inverse of `export`, but that the worlds begin fresh episodes."""
        population = seeds.unstack(exported, len(self.seeds))
        return self._settle([jax.tree.map(jnp.asarray, progress) for progress in population])

    def template(self) -> Progress:
        """Shapes and types of what `export` returns, without computing it."""
        return seeds.template(jax.eval_shape(self._begin, jax.random.key(0)), len(self.seeds))

    def actor(self, exported: Progress, seed: int, *, best: bool = True) -> AnyActor:
        """The actor of the seed at position `seed`: the best evaluated, or the last."""
        return seeds.actor(exported, seed, best=best)

    def play(self, actor: AnyActor, key: PRNGKeyArray, greedy: Any) -> Episodes:
        """An episode of `actor` for each entry of `greedy`: likeliest actions, or sampled ones."""
        return self._play([(actor, key)], np.asarray(greedy))[0]

    def _play(
        self, players: list[tuple[AnyActor, PRNGKeyArray]], greedy: np.ndarray
    ) -> list[Episodes]:
        """`play` for several actors, each with its key: no more than there are seeds.

        Each copy plays a number of episodes that is fixed beforehand, for whoever took the first
        that end would prefer short ones.
        """
        worlds, total, idle = self._worlds[1], len(greedy), len(self.seeds) - len(players)
        actors, keys = together([*players, *players[:1] * idle])
        shape = worlds.seeds, total
        returns, lengths, wins = np.zeros(shape), np.zeros(shape, np.int32), np.zeros(shape)
        playing = np.tile(np.arange(worlds.copies), (worlds.seeds, 1))
        """The episode that each copy is at."""
        playing[len(players) :] = total
        worlds.begin(keys)
        time = 0
        while (playing < total).any():
            for half, copies in enumerate(worlds.halves):
                own = np.s_[:, copies]
                if worlds.away[half]:
                    timestep, ended, lost = worlds.receive(half)
                    at, what = playing[own], worlds.active[own]
                    returns[of(what, at)] += timestep.reward[what].mean(-1)
                    lengths[of(what, at)] += 1
                    returns[of(what & lost, at)], lengths[of(what & lost, at)] = 0.0, 0
                    wins[of(ended, at)] = np.asarray(timestep.won)[ended]
                    playing[own] += worlds.copies * ended
                active = playing < total
                if active[own].any():
                    how = greedy[np.minimum(playing, total - 1)]
                    worlds.send(half, actors, keys, time, how, active)
            time += 1
        none = jnp.zeros(self.env.spec.agents, bool)  # Workers let no such reward through.
        return [
            Episodes(jnp.float32(returns[i]), jnp.asarray(lengths[i]), jnp.float32(wins[i]), none)
            for i in range(len(players))
        ]

    # What a seed's training is made of.

    def _begin(self, key: PRNGKeyArray) -> Progress:
        key_learner, key = jax.random.split(key)
        return Progress.start(self.algorithm.init(key_learner), None, key)

    def _settle(self, population: list[Progress]) -> list[Progress]:
        """The worlds of every seed begin: their chance follows from the seed's key. Evaluations
        draw from other keys of it, for they play an episode at least."""
        self._worlds[0].begin(together([jax.random.fold_in(seed.key, 0) for seed in population]))
        return population

    def _rollout(
        self, worlds: Worlds, actors: AnyActor, keys: Key[Array, " seed"], behind: np.ndarray
    ) -> list[tuple[Trajectory, RolloutStats]]:
        """Act in every copy of the seeds that are `behind`, for a horizon; or, where there is none,
        for one episode, after which a copy waits at the first step of its next and what follows is
        padding."""
        whole, length = self.config.rollout_length is None, self.length
        initial_state = self._blank(jax.tree.map(lambda x: x[0], actors))
        record: Trajectory = jax.tree.map(lambda x: np.stack([x] * worlds.seeds), initial_state)
        collecting = np.tile(behind[:, None], worlds.copies)
        sampled = np.zeros_like(collecting)
        begun = np.zeros(collecting.shape, int)
        """The step of this rollout at which the copy's present episode began, 0 if before."""
        returns: list[list[float]] = [[] for _ in self.seeds]

        def note(half: int, time: int) -> None:
            copies = worlds.halves[half]
            own, now = np.s_[:, copies], np.s_[:, time, copies]
            timestep, ended, lost = worlds.receive(half)
            record.reward[now] = timestep.reward
            record.terminated[now] = timestep.terminated
            record.truncated[now] = timestep.truncated
            fill(record.final, now, timestep.final)
            worlds.returns[own] += timestep.reward.mean(-1)
            over = ended | lost
            if not over.any():
                return
            for seed, copy in np.argwhere(over) + (0, copies.start):
                if lost[seed, copy - copies.start]:
                    record.valid[seed, begun[seed, copy] : time + 1, copy] = False
                else:
                    returns[seed].append(float(worlds.returns[seed, copy]))
            worlds.returns[own][over] = 0.0
            begun[own][over] = time + 1
            if whole:
                collecting[own] &= ~over

        for time in range(length):
            for half, copies in enumerate(worlds.halves):
                own, now = np.s_[:, copies], np.s_[:, time, copies]
                if worlds.away[half]:
                    note(half, time - 1)
                record.valid[now] = collecting[own]
                fill(record.observation, now, part(worlds.observation, own))
                record.is_first[now] = worlds.is_first[own]
                if not collecting[own].any():
                    fill(record.final, now, part(worlds.observation, own))
                    continue
                action, hidden_state = worlds.send(half, actors, keys, time, sampled, collecting)
                record.action[now] = action
                record.hidden_state[now] = hidden_state
        for half, away in enumerate(worlds.away):
            if away:
                note(half, length - 1)
        fill(record.last, np.s_[:], worlds.observation)
        record.last_is_first[:] = worlds.is_first
        record.last_hidden_state[:] = worlds.hidden_state
        apart = [jax.tree.map(lambda x, i=i: x[i], record) for i in range(worlds.seeds)]
        return [
            (trajectory, RolloutStats(int(trajectory.valid.sum()), own))
            for trajectory, own in zip(apart, returns, strict=True)
        ]

    def _act_all(self, actors, observation, hidden_state, is_first, greedy, keys, time, half):
        """`_act_one` for every seed, `[seed, env, ...]`: one after another, as a seed alone."""
        every = actors, observation, hidden_state, is_first, greedy, keys
        return jax.lax.map(lambda own: self._act_one(*own, time, half), every)

    def _act_one(self, actor, observation, hidden_state, is_first, greedy, key, time, half):
        """One step of every copy: `action [env, agent]`, or `[env, agent, action]`, and the
        memory after it."""
        key = jax.random.fold_in(jax.random.fold_in(key, time), half)
        key_action, key_actor = jax.random.split(key)
        policy, hidden_state = actor(observation, hidden_state, is_first, key_actor)
        mode, action = policy.mode(), policy.sample(key_action)
        greedy = greedy.reshape(greedy.shape + (1,) * (action.ndim - 1))
        action = jnp.where(greedy, mode, action)
        return action, actor.update_state(hidden_state, action)

    def _improve_one(
        self,
        learner: LearnerState,
        trajectory: Trajectory,
        key: PRNGKeyArray,
        progress: Float[Array, ""],
        steps: Int[Array, ""],
    ) -> tuple[LearnerState, Metrics, Fault]:
        """Learn from a trajectory, whose policies are worked out here, all at once, rather than
        brought along from every step; the first number in it that is not finite, if one is."""
        policy, _ = jax.vmap(lambda *seen: learner.actor(*seen))(
            trajectory.observation, trajectory.hidden_state, trajectory.is_first
        )
        trajectory = trajectory._replace(policy=policy)
        learner, metrics = self.algorithm.update(learner, trajectory, key, progress)
        return learner, metrics, nonfinite.find(trajectory, learner, metrics, steps)

    def _evaluate(
        self, players: list[tuple[AnyActor, PRNGKeyArray]], episodes: int
    ) -> list[tuple[Episodes, Metrics]]:
        greedy = np.arange(2 * episodes) < episodes
        apart = [(actor, jax.random.fold_in(key, episodes)) for actor, key in players]
        return [(played, seeds.scores(played, episodes)) for played in self._play(apart, greedy)]

    # Shapes.

    def _seen(self, *batch: int) -> Observation:
        spec = self.env.spec
        alive = None if self._first.alive is None else np.ones((*batch, spec.agents), bool)
        return Observation(
            np.zeros((*batch, spec.agents, spec.obs), np.float32),
            np.zeros((*batch, spec.state), np.float32),
            np.ones((*batch, spec.agents, spec.max_actions), bool),
            alive,
        )

    def _moment(self, actor: AnyActor, copies: int) -> tuple[Any, ...]:
        """What a step of so many copies is acted on: nothing of note."""
        flags = np.ones(copies, bool)
        return self._seen(copies), actor.initial_state((copies,)), flags, ~flags

    def _blank(self, actor: AnyActor) -> Trajectory:
        """Room for a rollout, in which nothing of note happens."""
        spec, time, env = self.env.spec, self.length, self.config.num_envs
        agents = spec.agents
        hidden_state = actor.initial_state((env,))
        action: tuple[Any, Any] = ((time, env, agents), np.int32)
        if spec.continuous:
            action = ((time, env, agents, spec.max_actions), np.float32)
        room: dict[str, Any] = {
            "observation": self._seen(time, env),
            "is_first": np.zeros((time, env), bool),
            "valid": np.ones((time, env), bool),
            "hidden_state": np.zeros((time, *hidden_state.shape), np.float32),
            "action": np.zeros(*action),
            "policy": None,
            "reward": np.zeros((time, env, agents), np.float32),
            "terminated": np.zeros((time, env), bool),
            "truncated": np.zeros((time, env), bool),
            "final": self._seen(time, env),
            "last": self._seen(env),
            "last_is_first": np.zeros(env, bool),
            "last_hidden_state": np.zeros(hidden_state.shape, np.float32),
        }
        return Trajectory(**room)


@jax.jit
def together(trees: Sequence[Any]) -> Any:
    """Trees of a kind as one, along a new first axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def of(which: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in `[seed, number]` the copies are `which` this is true of, `[seed, env]` both."""
    return np.nonzero(which)[0], number[which]


def film(env: HostEnv, actor: AnyActor, key: PRNGKeyArray, *, greedy: bool) -> list[np.ndarray]:
    """Pictures of one episode, first to last."""
    words = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]
    observation = env.reset(int(np.random.SeedSequence(words).generate_state(1)[0]))
    frames, hidden_state = [env.render()], actor.initial_state(())

    @jax.jit
    def act(key, observation, hidden_state, is_first):
        key_action, key_actor = jax.random.split(key)
        policy, hidden_state = actor(observation, hidden_state, is_first, key_actor)
        action = policy.mode() if greedy else policy.sample(key_action)
        return action, actor.update_state(hidden_state, action)

    for time in range(episode_limit(env)):
        action, hidden_state = act(
            jax.random.fold_in(key, time), observation, hidden_state, time == 0
        )
        timestep = env.step(env.spec.bounded(np.asarray(action)))
        frames.append(env.render())
        observation = timestep.observation
        if timestep.terminated or timestep.truncated:
            break
    return frames
