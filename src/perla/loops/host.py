"""The loop for worlds of the host: stepped in processes of their own, learnt from under `jit`.

Copies come in two halves. While the processes step one half, the actions of the other are computed;
when the update runs, the worlds stand still, because it changes the policy that they are to be
stepped by. Seeds are trained one after another, an interval each: the worlds of one seed keep every
core busy, and the processes, one for each core, hold the copies of all seeds.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.algos.create import create
from perla.algos.protocol import Algorithm, LearnerState, Trajectory
from perla.envs.pool import STEP_SECONDS, Pool, Say, first
from perla.envs.protocol import HostEnv, Observation, TimeStep
from perla.envs.worker import Factory
from perla.flops import Work, work
from perla.loops import progress as seeds
from perla.loops.evaluate import Episodes, episode_limit
from perla.loops.progress import Progress
from perla.methods.recipes import Method
from perla.nets.actors import AnyActor
from perla.types import Array, Float, Metrics, PRNGKeyArray

FEW = 8
"""Copies that evaluations are played on at least, however few are trained on."""


class Tally(NamedTuple):
    """What a rollout amounts to."""

    steps: int
    """Environment transitions that count, summed over copies."""
    returns: list[float]
    """Of the episodes that ended."""


class Worlds:
    """Copies of a world in two halves, and where they stand between two steps, `[env, ...]`."""

    def __init__(self, act: Any, pool: Pool, groups: list[int], nothing: Observation) -> None:
        self.act, self.pool, self.groups = act, pool, groups
        bounds = np.cumsum([0, *(len(pool.ranges[group]) for group in groups)])
        self.halves = [slice(a, b) for a, b in itertools.pairwise(bounds)]
        self.copies = int(bounds[-1])
        self.observation = nothing
        self.returns = np.zeros(self.copies)
        """The rewards of the current episodes so far, averaged over agents."""
        self.away = [False] * len(groups)
        """Halves that are being stepped."""
        self.fresh = np.ones(self.copies, bool)
        """An episode is about to begin."""
        self.active = np.ones(self.copies, bool)
        """What the last step was for."""
        self.memory: np.ndarray | None = None
        """The actor's memory `[env, agent, hidden]`."""

    def begin(self, key: PRNGKeyArray) -> None:
        """An episode in every copy."""
        entropy = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]
        for half, group in enumerate(self.groups):
            self.pool.reset(group, half, *entropy)
        for half, group in enumerate(self.groups):
            timestep, _ = self.pool.receive(group)
            fill(self.observation, self.halves[half], timestep.observation)
        self.fresh[:], self.returns[:] = True, 0.0

    def send(
        self,
        half: int,
        actor: AnyActor,
        key: PRNGKeyArray,
        time: int,
        greedy: np.ndarray,
        active: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Act in the `active` copies of a `half`, greedily or not; the actions of all copies in
        it, and the memories that they were chosen with."""
        if self.memory is None:
            self.memory = np.array(actor.blank((self.copies,)))
        own = self.halves[half]
        before = self.memory[own].copy()
        action, memory = self.act(
            actor, part(self.observation, own), before, self.fresh[own], greedy[own],
            key, np.int32(time), np.int32(half),
        )  # fmt: skip
        action = np.asarray(action)
        self.active[own] = active[own]
        self.pool.step(self.groups[half], action, active[own])
        self.away[half] = True
        self.memory[own] = memory
        return action, before

    def receive(self, half: int) -> tuple[TimeStep, np.ndarray, np.ndarray]:
        """What became of it, whose episode has ended, and whose was dropped. Copies that were not
        active stand where they stood, and have neither ended nor earned anything."""
        own = self.halves[half]
        timestep, lost = self.pool.receive(self.groups[half])
        self.away[half] = False
        idle = ~self.active[own] & ~lost
        reward = np.where(idle[:, None], np.float32(0.0), timestep.reward)
        terminated, truncated = timestep.terminated & ~idle, timestep.truncated & ~idle
        fill(self.observation, own, timestep.observation)
        self.fresh[own] = np.where(idle, self.fresh[own], terminated | truncated | lost)
        timestep = timestep._replace(reward=reward, terminated=terminated, truncated=truncated)
        return timestep, (terminated | truncated) & ~lost, lost


class Trainer:
    """Trains `config` on many copies of the world that `factory` makes, of which `env` is one, for
    `steps` environment steps, once for every seed. The same learner, numbers and interface as
    `perla.loops.anakin.Trainer`.

    The copies are spread over `workers` processes, which change the speed and no number; see
    `perla.envs.pool.Pool` for what becomes of a copy that fails, and for `step_seconds`. An episode
    that is dropped is neither learnt from nor counted. Whoever has trained or played must `close`.
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
        self.eval_copies = min(2 * eval_episodes, max(config.copies, FEW))
        self._act = jax.jit(self._act_one)
        self._improve = jax.jit(self._improve_one)

    # The worlds.

    @cached_property
    def _first(self) -> Observation:
        return first(self.env)

    @cached_property
    def _pool(self) -> Pool:
        groups: dict[str, int] = {}
        for seed in self.seeds:
            groups |= halves(f"seed {seed}", self.config.copies)
        groups |= halves("evaluation", self.eval_copies)
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
    def _worlds(self) -> list[Worlds]:
        """Those of every seed, and at the end those of evaluations."""
        each = len(halves("", self.config.copies))
        groups = list(range(len(self._pool.ranges)))
        parts = [groups[i * each : (i + 1) * each] for i in range(len(self.seeds))]
        parts.append(groups[len(self.seeds) * each :])
        counts = [self.config.copies] * len(self.seeds) + [self.eval_copies]
        return [
            Worlds(self._act, self._pool, part, self._seen(copies))
            for part, copies in zip(parts, counts, strict=True)
        ]

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
        sizes = [halves("", copies).values() for copies in (self.config.copies, self.eval_copies)]
        for copies in {size for both in sizes for size in both}:
            self._act(actor, *self._moment(actor, copies), key, np.int32(0), np.int32(0))
        trajectory = self._blank(actor)
        jax.block_until_ready(self._improve(progress.learner, trajectory, key, np.float32(0.0)))

    def work_per_step(self) -> Work:
        """What acting and learning do for each environment step; the worlds' own is not known."""
        blueprint = jax.eval_shape(self._begin, jax.random.key(0))
        trajectory = jax.eval_shape(self._blank, blueprint.learner.actor)
        progress = jnp.float32(0.0)
        learning = work(self._improve_one, blueprint.learner, trajectory, blueprint.key, progress)
        return learning.times(1 / (self.config.copies * self.length)) + self._work_per_action()

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
        """
        results = [self._advance(i, progress, until) for i, progress in enumerate(population)]
        return [progress for progress, _ in results], [row for _, row in results]

    def absolute(self, population: list[Progress], episodes: int = 320) -> list[dict[str, float]]:
        """The best actors over fresh episodes, as many greedy as sampled."""
        return [
            seeds.row(self._evaluate(progress.best, progress.key, episodes))
            for progress in population
        ]

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
        """An episode of `actor` for each entry of `greedy`: likeliest actions, or sampled ones.

        Each copy plays a number of them that is fixed beforehand, for whoever took the first that
        end would prefer short ones.
        """
        greedy, worlds = np.asarray(greedy), self._worlds[-1]
        total = len(greedy)
        returns, lengths, wins = np.zeros(total), np.zeros(total, np.int32), np.zeros(total)
        playing = np.arange(worlds.copies)
        """The episode that each copy is at."""
        worlds.begin(key)
        time = 0
        while (playing < total).any():
            for half, own in enumerate(worlds.halves):
                if worlds.away[half]:
                    timestep, ended, lost = worlds.receive(half)
                    copies = np.arange(worlds.copies)[own]
                    at, what = playing[copies], worlds.active[own]
                    returns[at[what]] += timestep.reward[what].mean(-1)
                    lengths[at[what]] += 1
                    returns[at[what & lost]], lengths[at[what & lost]] = 0.0, 0
                    wins[at[ended]] = np.asarray(timestep.won)[ended]
                    playing[copies[ended]] += worlds.copies
                active = playing < total
                if active[own].any():
                    how = greedy[np.minimum(playing, total - 1)]
                    worlds.send(half, actor, key, time, how, active)
            time += 1
        return Episodes(
            jnp.asarray(returns, jnp.float32), jnp.asarray(lengths), jnp.asarray(wins, jnp.float32)
        )

    # One seed.

    def _begin(self, key: PRNGKeyArray) -> Progress:
        key_learner, key = jax.random.split(key)
        return Progress.start(self.algorithm.init(key_learner), None, key)

    def _settle(self, population: list[Progress]) -> list[Progress]:
        """The worlds of every seed begin: their chance follows from the seed's key. Evaluations
        draw from other keys of it, for they play an episode at least."""
        for worlds, progress in zip(self._worlds[:-1], population, strict=True):
            worlds.begin(jax.random.fold_in(progress.key, 0))
        return population

    def _advance(
        self, position: int, progress: Progress, until: int
    ) -> tuple[Progress, dict[str, float]]:
        found: dict[str, list[float]] = defaultdict(list)
        while int(progress.steps) < until:
            progress, metrics, tally = self._update(position, progress)
            for name, value in metrics.items():
                found[name].append(float(value))
            found["train_return"] += tally.returns
        means: Any = {name: np.mean(values) for name, values in found.items() if values}
        scores = self._evaluate(progress.learner.actor, progress.key, self.eval_episodes)
        return progress.judged(scores), seeds.row(means | scores | {"step": progress.steps})

    def _update(self, position: int, progress: Progress) -> tuple[Progress, Metrics, Tally]:
        """Collect, then improve."""
        key, key_rollout, key_update = jax.random.split(progress.key, 3)
        learner = progress.learner
        trajectory, tally = self._rollout(self._worlds[position], learner.actor, key_rollout)
        share = np.float32(int(progress.steps) / self.steps)
        learner, metrics = self._improve(learner, trajectory, key_update, share)
        steps = progress.steps + tally.steps
        return progress._replace(learner=learner, key=key, steps=steps), metrics, tally

    def _rollout(
        self, worlds: Worlds, actor: AnyActor, key: PRNGKeyArray
    ) -> tuple[Trajectory, Tally]:
        """Act for a horizon in every copy; or, where there is none, for one episode, after which a
        copy waits at the first step of its next and what follows is padding."""
        whole, length = self.config.horizon is None, self.length
        record = jax.tree.map(np.asarray, self._blank(actor))
        sampled = np.zeros(worlds.copies, bool)
        collecting = np.ones(worlds.copies, bool)
        begun = np.zeros(worlds.copies, int)
        """The step of this rollout at which the copy's present episode began, 0 if before."""
        returns: list[float] = []

        def note(half: int, time: int) -> None:
            own = worlds.halves[half]
            timestep, ended, lost = worlds.receive(half)
            record.reward[time, own] = timestep.reward
            record.terminated[time, own] = timestep.terminated
            record.truncated[time, own] = timestep.truncated
            fill(part(record.final, time), own, timestep.final)
            worlds.returns[own] += timestep.reward.mean(-1)
            for copy in np.arange(worlds.copies)[own][lost]:
                record.valid[begun[copy] : time + 1, copy] = False
                worlds.returns[copy] = 0.0
            for copy in np.arange(worlds.copies)[own][ended]:
                returns.append(float(worlds.returns[copy]))
                worlds.returns[copy] = 0.0
            over = ended | lost
            begun[own] = np.where(over, time + 1, begun[own])
            if whole:
                collecting[own] &= ~over

        for time in range(length):
            for half, own in enumerate(worlds.halves):
                if worlds.away[half]:
                    note(half, time - 1)
                record.valid[time, own] = collecting[own]
                fill(part(record.observation, time), own, part(worlds.observation, own))
                record.fresh[time, own] = worlds.fresh[own]
                if not collecting[own].any():
                    fill(part(record.final, time), own, part(worlds.observation, own))
                    continue
                action, memory = worlds.send(half, actor, key, time, sampled, collecting)
                record.action[time, own] = action
                record.memory[time, own] = memory
        for half, away in enumerate(worlds.away):
            if away:
                note(half, length - 1)
        fill(record.last, slice(None), worlds.observation)
        record.last_fresh[:] = worlds.fresh
        record.last_memory[:] = worlds.memory
        return record, Tally(int(record.valid.sum()), returns)

    def _act_one(self, actor, observation, memory, fresh, greedy, key, time, half):
        """One step of every copy: `action [env, agent]`, or `[env, agent, action]`, and the
        memory after it."""
        key = jax.random.fold_in(jax.random.fold_in(key, time), half)
        key_action, key_actor = jax.random.split(key)
        policy, memory = actor(observation, memory, fresh, key_actor)
        mode, action = policy.mode(), policy.sample(key_action)
        greedy = greedy.reshape(greedy.shape + (1,) * (action.ndim - 1))
        action = jnp.where(greedy, mode, action)
        return action, actor.remember(memory, action)

    def _improve_one(
        self,
        learner: LearnerState,
        trajectory: Trajectory,
        key: PRNGKeyArray,
        progress: Float[Array, ""],
    ) -> tuple[LearnerState, Metrics]:
        """Learn from a trajectory, whose policies are worked out here, all at once, rather than
        brought along from every step."""
        policy, _ = jax.vmap(lambda *seen: learner.actor(*seen))(
            trajectory.observation, trajectory.memory, trajectory.fresh
        )
        return self.algorithm.update(learner, trajectory._replace(policy=policy), key, progress)

    def _evaluate(self, actor: AnyActor, key: PRNGKeyArray, episodes: int) -> Metrics:
        greedy = np.arange(2 * episodes) < episodes
        return seeds.scores(self.play(actor, jax.random.fold_in(key, episodes), greedy), episodes)

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
        return self._seen(copies), actor.blank((copies,)), flags, ~flags

    def _blank(self, actor: AnyActor) -> Trajectory:
        """Room for a rollout, in which nothing of note happens."""
        spec, time, env = self.env.spec, self.length, self.config.copies
        agents = spec.agents
        memory = actor.blank((env,))
        action: tuple[Any, Any] = ((time, env, agents), np.int32)
        if spec.continuous:
            action = ((time, env, agents, spec.max_actions), np.float32)
        room: dict[str, Any] = {
            "observation": self._seen(time, env),
            "fresh": np.zeros((time, env), bool),
            "valid": np.ones((time, env), bool),
            "memory": np.zeros((time, *memory.shape), np.float32),
            "action": np.zeros(*action),
            "policy": None,
            "reward": np.zeros((time, env, agents), np.float32),
            "terminated": np.zeros((time, env), bool),
            "truncated": np.zeros((time, env), bool),
            "final": self._seen(time, env),
            "last": self._seen(env),
            "last_fresh": np.zeros(env, bool),
            "last_memory": np.zeros(memory.shape, np.float32),
        }
        return Trajectory(**room)


def halves(name: str, copies: int) -> dict[str, int]:
    """The sizes of two halves of `copies`, or of one whole where there is but one."""
    if copies == 1:
        return {name: 1}
    return {f"{name}, half 1": copies - copies // 2, f"{name}, half 2": copies // 2}


def part(seen: Observation, own: Any) -> Observation:
    """Some of what was seen: views."""
    return Observation(*(None if x is None else x[own] for x in seen))


def fill(seen: Observation, own: Any, new: Observation) -> None:
    """Write `new` where `own` is."""
    for old, x in zip(seen, new, strict=True):
        if old is not None:
            old[own] = x


def film(env: HostEnv, actor: AnyActor, key: PRNGKeyArray, *, greedy: bool) -> list[np.ndarray]:
    """Pictures of one episode, first to last."""
    words = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]
    observation = env.reset(int(np.random.SeedSequence(words).generate_state(1)[0]))
    frames, memory = [env.render()], actor.blank(())

    @jax.jit
    def act(key, observation, memory, fresh):
        key_action, key_actor = jax.random.split(key)
        policy, memory = actor(observation, memory, fresh, key_actor)
        action = policy.mode() if greedy else policy.sample(key_action)
        return action, actor.remember(memory, action)

    for time in range(episode_limit(env)):
        action, memory = act(jax.random.fold_in(key, time), observation, memory, time == 0)
        timestep = env.step(np.asarray(action))
        frames.append(env.render())
        observation = timestep.observation
        if timestep.terminated or timestep.truncated:
            break
    return frames
