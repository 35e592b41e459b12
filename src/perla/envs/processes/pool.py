"""Many copies of a host world, stepped side by side in processes of their own.

The processes share memory for all that they see and do, so that a message is a few bytes whatever
the observations are. Each steps several copies of every group: while one group steps, the actions
of another can be computed.

Gymnasium's `AsyncVectorEnv` is for one agent, a process for each copy, and ends the run where a
copy fails; stable-baselines3's is alike. What matters here is the opposite of each.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import selectors
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from jaxtyping import Bool

from perla.envs.checks import check_alive, describe_value, explain_errors
from perla.envs.processes.worker import (
    Entropy,
    Factory,
    Fault,
    Share,
    SharedArrays,
    check,
    line,
    place,
    put,
    serve,
)
from perla.envs.protocol import HostEnv, Observation, Spec, TimeStep
from perla.errors import UserError

STEP_SECONDS = 60.0
"""A step, or an episode's beginning, that takes longer has hung."""
START_SECONDS = 120.0
"""The same where the process has yet to start, and the world to be made."""
CLOSE_SECONDS = 5.0
"""The same where a copy is let go of."""
RESTARTS = 10
"""Faults of a run that are survived."""

Say = Callable[[str], None]


class Pool:
    """Groups of copies of one world, each group stepped on its own.

    `groups` holds the names of each group's copies; `alive` says whether observations tell which
    agents take part; `workers` how many processes there are at most. `reset` and `step` begin
    something in a group and return at once; `receive` waits for it. Neither a copy's process nor
    its company changes anything: what happens in an episode follows from the copy's entropy, the
    episode's number and the actions.

    Where a copy raises, or returns what its `Spec` does not promise, that copy is made anew; where
    a process dies or takes longer than `step_seconds` over one step, all its copies are. `say` is
    told which, and at which step. After `restarts` such faults the next is a `UserError`.
    """

    def __init__(
        self,
        factory: Factory,
        spec: Spec,
        groups: Sequence[Sequence[str]],
        *,
        alive: bool = False,
        workers: int = 1,
        step_seconds: float = STEP_SECONDS,
        restarts: int = RESTARTS,
        say: Say = lambda text: None,
    ) -> None:
        self.factory, self.spec, self.say = factory, spec, say
        self.step_seconds, self.restarts = step_seconds, restarts
        self.names = list(itertools.chain(*groups))
        sizes = [len(names) for names in groups]
        bounds = np.cumsum([0, *sizes])
        self.ranges = [range(a, b) for a, b in itertools.pairwise(bounds)]
        # Never fork: JAX's threads would be left behind with their locks held.
        self.context = multiprocessing.get_context("spawn")
        workers = max(1, min(workers, max(sizes)))
        copies = int(bounds[-1])
        self.arrays = SharedArrays(self.context, spec, copies, workers, alive)
        self.lost = np.zeros(copies, bool)
        """Copies whose episode was dropped since they were last received."""
        self.entropy: dict[int, Entropy] = {}
        self.faults = 0
        firsts = {group: copies.start for group, copies in enumerate(self.ranges)}
        self.workers = [
            _Worker(
                self,
                Share(
                    number,
                    {
                        # Not the same workers get the smaller shares of all groups.
                        group: _share(copies, (number + group) % workers, workers)
                        for group, copies in enumerate(self.ranges)
                    },
                    firsts,
                ),
            )
            for number in range(workers)
        ]

    def reset(self, group: int, entropy: Entropy) -> None:
        """Let every copy of `group` begin an episode, whose chance follows from its `entropy`.

        Raises `UserError` where there have been too many faults.
        """
        own = _slice(self.ranges[group])
        self._settle(group)  # A process started anew may still be beginning the last's episodes.
        self.arrays.episode[own] = -1
        self.lost[own] = False
        self.entropy[group] = entropy
        for worker in self.workers:
            worker.send("begin", group, entropy)

    def step(self, group: int, action: np.ndarray, active: Bool[np.ndarray, " env"] | None = None):
        """Let the `active` copies of `group` (all by default) make a transition, and those whose
        episode it ends begin another. `action`: `[env, agent]` or `[env, agent, action]`."""
        own = _slice(self.ranges[group])
        self.arrays.action[own] = self.spec.bounded(action)
        self.arrays.active[own] = True if active is None else active
        self.arrays.active[own] &= ~self.lost[own]
        for worker in self.workers:
            worker.send("step", group, None)

    def receive(self, group: int) -> tuple[TimeStep, Bool[np.ndarray, " env"]]:
        """What became of the last `reset` (of which only `observation` means anything) or `step`,
        `[env, ...]`, and the copies of which nothing is known, because their episode was dropped:
        of them the `observation` is another episode's first, and the rest is nothing's.

        Raises `UserError` where there have been too many faults.
        """
        self._settle(group)
        own = _slice(self.ranges[group])
        lost = self.lost[own].copy()
        self.lost[own] = False
        arrays = self.arrays
        observation, final = (
            Observation(*(None if x is None else x[own].copy() for x in seen))
            for seen in (arrays.observation, arrays.final)
        )
        reward = arrays.reward[own].copy()
        terminated, truncated = arrays.terminated[own].copy(), arrays.truncated[own].copy()
        won = arrays.won[own].copy()
        if lost.any():
            reward[lost], terminated[lost], truncated[lost] = 0.0, True, False
            for old, new in zip(final, observation, strict=True):
                if new is not None:
                    old[lost] = new[lost]
        return TimeStep(observation, reward, terminated, truncated, final, won), lost

    def _settle(self, group: int) -> None:
        """Wait until nothing is under way in `group`."""
        while waiting := [worker for worker in self.workers if worker.pending[group]]:
            for worker in waiting:
                if worker.answers():
                    worker.hear()
                else:
                    worker.check()

    def close(self) -> None:
        """End all processes, once they have let go of their copies."""
        workers, self.workers = self.workers, []
        for worker in workers:
            worker.hang_up()
        try:
            for worker in workers:
                worker.join()
        finally:
            for worker in workers:
                worker.end()

    def fault(self, what: str) -> None:
        """One fault more: say `what` happened; `UserError` where it is one too many."""
        self.faults += 1
        if self.faults > self.restarts:
            raise UserError(
                f"{what}; this is fault {self.faults} of the run, which ends here because no more "
                f"than {self.restarts} are survived"
            )
        self.say(f"{what}; its episode is dropped and another begun "
                 f"(fault {self.faults}, of at most {self.restarts})")  # fmt: skip

    def name(self, copy: int) -> str:
        """The name of a copy."""
        return f"{self.spec.id}, {self.names[copy]}"


class _Worker:
    """One process, as its parent sees it; started anew where need be."""

    def __init__(self, pool: Pool, share: Share) -> None:
        self.pool, self.share = pool, share
        self.pending: Counter[int] = Counter()
        """Answers that are still to come, by group."""
        self._start()

    def _start(self) -> None:
        context, pool = self.pool.context, self.pool
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        self.answer = selectors.DefaultSelector()
        self.answer.register(self.pipe, selectors.EVENT_READ)
        self.process: Any = context.Process(
            target=serve,
            args=(theirs, pool.factory, pool.spec, pool.arrays, self.share),
            name=f"perla-worker-{self.share.number}",
            daemon=True,
        )
        self.process.start()
        theirs.close()
        self.pending.clear()
        self.patience = max(START_SECONDS, pool.step_seconds)
        self._wait()

    def send(self, command: str, group: int, entropy: Entropy | None) -> None:
        """Ask for something in `group`, if any of it is this worker's."""
        if not self.share.groups[group]:
            return
        if not any(self.pending.values()):
            self._wait()
        self.pending[group] += 1
        with suppress(OSError):  # Whoever has died is noticed when its answer is waited for.
            self.pipe.send((command, group, entropy))

    def answers(self) -> bool:
        """Wait for an answer, until there is one or it is too late."""
        return bool(self.answer.select(max(0.0, self.deadline - time.monotonic())))

    def hear(self) -> None:
        """Take an answer, or notice that there will be none."""
        try:
            kind, where, what = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5.0)
            self._anew(f"its process {_ending(self.process.exitcode)}")
            return
        if kind == "failed":
            self.pool.arrays.current_env[self.share.number] = where
            self._anew(f"an episode cannot begin ({what})")
            return
        self.pending[where] -= 1
        self.patience = self.pool.step_seconds
        self._wait()
        for copy, step, text in what:
            self.pool.lost[copy] = True
            self.pool.fault(f"{self.pool.name(copy)}, step {step}: {text}")

    def check(self) -> None:
        """Start the process anew if it has been at one step for too long."""
        if time.monotonic() < self.deadline:
            return
        if self._ticks() != self.ticks:
            self._wait()
            return
        self._anew(f"no answer within {self.patience:g} s, so its process was killed")

    def join(self) -> None:
        """Wait for the process to end, as long as it takes up one copy after another."""
        ticks = -1
        while ticks != (ticks := self._ticks()):
            self.process.join(CLOSE_SECONDS)

    def end(self) -> None:
        """End the process, whatever it is at, and what its worlds have started."""
        with suppress(OSError):  # It has yet to make its group, or all of that are gone.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.hang_up()

    def hang_up(self) -> None:
        """End the conversation, and the process once it has done what it is at."""
        self.answer.close()
        self.pipe.close()

    def _anew(self, what: str) -> None:
        self.end()
        pool, number = self.pool, self.share.number
        copy = int(pool.arrays.current_env[number])
        step = int(pool.arrays.time[copy])
        for group in pool.entropy:
            pool.lost[_slice(self.share.groups[group])] = True
        pool.fault(f"{pool.name(copy)}, step {step}, worker {number}: {what}")
        self._start()
        for group, entropy in pool.entropy.items():
            self.send("begin", group, entropy)

    def _ticks(self) -> int:
        return int(self.pool.arrays.ticks[self.share.number])

    def _wait(self) -> None:
        self.ticks = self._ticks()
        self.deadline = time.monotonic() + self.patience


def sample_actions(spec: Spec, random: np.random.Generator, avail: np.ndarray) -> np.ndarray:
    """Uniform actions `[*batch, agent]` among those that `avail` (`[*batch, agent, action]`)
    allows, or `[*batch, agent, action]` where they are continuous."""
    if spec.continuous:
        return random.uniform(-1, 1, avail.shape).astype(np.float32)
    return np.where(avail, random.random(avail.shape), -1.0).argmax(-1).astype(np.int32)


def seconds_per_step(env: HostEnv, steps: int = 200) -> float:
    """Seconds that one copy takes for a step, with what resetting it takes: the mean of `steps`
    with uniform actions."""
    random = np.random.default_rng(0)
    began = time.perf_counter()
    seen = env.reset(0)
    for _ in range(steps):
        timestep = env.step(sample_actions(env.spec, random, seen.avail))
        seen = timestep.observation
        if timestep.terminated or timestep.truncated:
            seen = env.reset(int(random.integers(2**32)))
    return (time.perf_counter() - began) / steps


def first_observation(env: HostEnv) -> Observation:
    """The first observation of a world's episode; `UserError` unless it is what its spec says."""
    spec = env.spec
    with explain_errors(f"{spec.id}: reset fails"):
        observation = env.reset(0)
    if not isinstance(observation, Observation):
        raise UserError(
            f"{spec.id}: reset returns {describe_value(observation)}, not an Observation"
        )
    check_alive(f"{spec.id}: reset gives", observation, spec)
    alive = None if observation.alive is None else np.empty((1, spec.agents), bool)
    into = Observation(
        np.empty((1, spec.agents, spec.obs), np.float32),
        np.empty((1, spec.state), np.float32),
        np.empty((1, spec.agents, spec.max_actions), bool),
        alive,
    )
    try:
        put(observation, place(into, 0))
        check(place(into, 0))
    except Fault as fault:
        raise UserError(f"{spec.id}: in the first observation {line(fault)}") from None
    return observation


def _share(copies: range, number: int, workers: int) -> range:
    """Consecutive `copies`, as many for each of the workers as for any other, give or take one."""
    return copies[len(copies) * number // workers : len(copies) * (number + 1) // workers]


def _slice(copies: range) -> slice:
    return slice(copies.start, copies.stop)


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with status {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
