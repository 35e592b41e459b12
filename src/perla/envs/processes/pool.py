"""A pool of host environments, stepped in worker processes.

Actions, observations and rewards are in shared memory, so that a message is a few bytes whatever
the size of the observations. Each worker steps several environments of every group: while one
group steps, the actions of another can be computed.

Gymnasium's `AsyncVectorEnv` and stable-baselines3's `SubprocVecEnv` are for single agents, use one
process per environment, and end the run when an environment fails. This pool does the opposite of
each.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import selectors
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import numpy as np
from jaxtyping import Bool

from perla.envs.checks import check_alive, explain_errors
from perla.envs.processes.worker import (
    UNGUARDED,
    Entropy,
    Factory,
    Share,
    SharedArrays,
    WorkerEnvs,
    check_values,
    describe_error,
    select,
    serve,
    write_observation,
)
from perla.envs.protocol import HostEnv, Observation, Spec, TimeStep
from perla.envs.values import Fault, describe_value
from perla.errors import UserError

STEP_SECONDS = 60.0
"""Longest time for a step or a reset; a worker that takes longer is killed."""
START_SECONDS = 120.0
"""Longest time for the first answer, which includes starting the process and making the
environments."""
CLOSE_SECONDS = 5.0
"""Longest time for closing one environment."""
RESTARTS = 10
"""Faults within `WINDOW` episodes that a run survives."""
WINDOW = 1_000
"""Episodes over which faults are counted."""

GUARD = (
    "worker processes import the script that started them, which would train again; put its calls "
    "under `if __name__ == '__main__':`"
)
IMPORTABLE = "worker processes import the modules that the environment's code is from"
SENDABLE = (
    "worker processes need what the environment is made from: hand over a function that makes it, "
    "and makes open files, sockets and locks itself"
)

Say = Callable[[str], None]


class Pool:
    """Groups of environments in worker processes; each group is stepped on its own.

    `groups` holds the names of each group's environments. `alive` says whether observations have
    an `alive` mask. `workers` is the largest number of processes. `reset` and `step` start the
    work and return at once; `receive` waits for its result. An episode depends on the
    environment's entropy, the episode's number and the actions only, not on the worker or on the
    other environments.

    If an environment raises or breaks the contract of its `Spec`, it is recreated. If a process
    dies or takes longer than `step_seconds` for one step, all its environments are. `say` is
    called with a message that names the environment and the step. After `restarts` such faults
    within `WINDOW` ended episodes the next one raises `UserError`.
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
        exit_in_worker()
        self.factory, self.spec, self.say = factory, spec, say
        self.step_seconds, self.restarts = step_seconds, restarts
        self.names = list(itertools.chain(*groups))
        sizes = [len(names) for names in groups]
        bounds = np.cumsum([0, *sizes])
        self.ranges = [range(a, b) for a, b in itertools.pairwise(bounds)]
        # Never fork: JAX's threads would be left behind with their locks held.
        self.context = multiprocessing.get_context("spawn")
        workers = max(1, min(workers, max(sizes)))
        num_envs = int(bounds[-1])
        self.arrays = SharedArrays(self.context, spec, num_envs, workers, alive)
        self.lost = np.zeros(num_envs, bool)
        """Environments whose episode was dropped since the last `receive`."""
        self.entropy: dict[int, Entropy] = {}
        self.payload = _pickled(factory, spec)
        self.episodes = 0
        """Episodes that have ended."""
        self.faults: deque[int] = deque()
        """The number of episodes that had ended at each of the latest faults."""
        firsts = {group: indices.start for group, indices in enumerate(self.ranges)}
        self.workers = [
            _Worker(
                self,
                Share(
                    number,
                    {
                        # Rotated, so that the smaller shares go to different workers.
                        group: _share(indices, (number + group) % workers, workers)
                        for group, indices in enumerate(self.ranges)
                    },
                    firsts,
                ),
            )
            for number in range(workers)
        ]

    def reset(self, group: int, entropy: Entropy) -> None:
        """Begin an episode in every environment of `group`, seeded by its words of `entropy`.

        Raises `UserError` after too many faults.
        """
        rows = _slice(self.ranges[group])
        self._wait_for(group)  # A restarted process may still be resetting after a fault.
        self.arrays.episode[rows] = -1
        self.lost[rows] = False
        self.entropy[group] = entropy
        for worker in self.workers:
            worker.send("begin", group, entropy)

    def step(self, group: int, action: np.ndarray, active: Bool[np.ndarray, " env"] | None = None):
        """Step the `active` environments of `group` (default: all) and reset those whose episode
        ends. `action`: `[env, agent]` or `[env, agent, dimension]`."""
        rows = _slice(self.ranges[group])
        self.arrays.action[rows] = self.spec.bounded(action)
        self.arrays.active[rows] = True if active is None else active
        self.arrays.active[rows] &= ~self.lost[rows]
        for worker in self.workers:
            worker.send("step", group, None)

    def receive(self, group: int) -> tuple[TimeStep, Bool[np.ndarray, " env"]]:
        """The result `[env, ...]` of the last `reset` or `step`, and the environments whose episode
        was dropped after a fault.

        After `reset` only `observation` is defined. For a dropped episode `observation` is the
        first one of another episode, and nothing else is defined. Raises `UserError` after too
        many faults.
        """
        self._wait_for(group)
        rows = _slice(self.ranges[group])
        lost = self.lost[rows].copy()
        self.lost[rows] = False
        arrays = self.arrays
        observation, final = (
            Observation(*(None if x is None else x[rows].copy() for x in source))
            for source in (arrays.observation, arrays.final)
        )
        reward = arrays.reward[rows].copy()
        terminated, truncated = arrays.terminated[rows].copy(), arrays.truncated[rows].copy()
        won = arrays.won[rows].copy()
        self.episodes += int(((terminated | truncated) & arrays.active[rows] & ~lost).sum())
        if lost.any():
            reward[lost], terminated[lost], truncated[lost] = 0.0, True, False
            for old, new in zip(final, observation, strict=True):
                if new is not None:
                    old[lost] = new[lost]
        return TimeStep(observation, reward, terminated, truncated, final, won), lost

    def _wait_for(self, group: int) -> None:
        """Wait until every worker has answered for `group`."""
        while waiting := [worker for worker in self.workers if worker.pending[group]]:
            for worker in waiting:
                if worker.wait_for_answer():
                    worker.read_answer()
                else:
                    worker.check_deadline()

    def close(self) -> None:
        """Close all environments, then end all processes."""
        workers, self.workers = self.workers, []
        for worker in workers:
            worker.close_pipe()
        try:
            for worker in workers:
                worker.join()
        finally:
            for worker in workers:
                worker.kill()

    def fault(self, message: str) -> None:
        """Count and report a fault. Raises `UserError` if there are more than `restarts` within
        `WINDOW` episodes."""
        while self.faults and self.faults[0] <= self.episodes - WINDOW:
            self.faults.popleft()
        self.faults.append(self.episodes)
        count = f"fault {len(self.faults)} within {WINDOW:,} episodes"
        if len(self.faults) > self.restarts:
            raise UserError(
                f"{message}; this is {count}, and the run ends here because it survives at most "
                f"{self.restarts}"
            )
        self.say(f"{message}; its episode is dropped and another begun "
                 f"({count}, of at most {self.restarts})")  # fmt: skip

    def name(self, index: int) -> str:
        """The name of an environment."""
        return f"{self.spec.id}, {self.names[index]}"


class _Worker:
    """The parent's view of one worker process, which is restarted after a fault."""

    def __init__(self, pool: Pool, share: Share) -> None:
        self.pool, self.share = pool, share
        self.pending: Counter[int] = Counter()
        """Number of outstanding answers of each group."""
        self.answered = False
        """It has begun an episode, so that what fails later may be chance."""
        self._start()

    def _start(self) -> None:
        context, pool = self.pool.context, self.pool
        self.pipe: Connection
        self.pipe, worker_pipe = context.Pipe()
        self.answer = selectors.DefaultSelector()
        self.answer.register(self.pipe, selectors.EVENT_READ)
        self.process: Any = context.Process(
            target=serve,
            args=(worker_pipe, pool.payload, pool.arrays, self.share),
            name=f"perla-worker-{self.share.number}",
            daemon=True,
        )
        self.process.start()
        worker_pipe.close()
        self.pending.clear()
        self.timeout = max(START_SECONDS, pool.step_seconds)
        self._reset_deadline()

    def send(self, command: str, group: int, entropy: Entropy | None) -> None:
        """Send a command for `group`, if the worker has any of its environments."""
        if not self.share.groups[group]:
            return
        if not any(self.pending.values()):
            self._reset_deadline()
        self.pending[group] += 1
        with suppress(OSError):  # A dead process is noticed while waiting for its answer.
            self.pipe.send((command, group, entropy))

    def wait_for_answer(self) -> bool:
        """Wait until there is an answer (True) or the deadline has passed (False)."""
        return bool(self.answer.select(max(0.0, self.deadline - time.monotonic())))

    def read_answer(self) -> None:
        """Read an answer. Restarts the process if it has died or failed."""
        try:
            kind, value, details = self.pipe.recv()
        except (EOFError, OSError):
            kind, value, details = "ended", -1, ""
        if kind == "ended":
            self.process.join(5.0)
            self._check_start(self.process.exitcode)
            self._restart(f"its process {_describe_exit(self.process.exitcode)}")
            return
        if kind == "hopeless" and (value < 0 or not self.answered):
            hint = f"; {IMPORTABLE}" if value < 0 else ""
            raise UserError(
                f"{self.pool.spec.id}: a worker process cannot begin an episode ({details}){hint}"
            )
        if kind in ("failed", "hopeless"):
            self.pool.arrays.current_env[self.share.number] = value
            self._restart(f"an episode cannot begin ({details})")
            return
        self.answered = True
        self.pending[value] -= 1
        self.timeout = self.pool.step_seconds
        self._reset_deadline()
        for index, step, message in details:
            self.pool.lost[index] = True
            self.pool.fault(f"{self.pool.name(index)}, step {step}: {message}")

    def _check_start(self, status: int | None) -> None:
        """Raise `UserError` if the process has ended by itself before it answered anything: another
        one would do the same. Ended by a signal, it may have run out of memory."""
        if status == UNGUARDED:
            raise UserError(f"{self.pool.spec.id}: {GUARD}")
        if not self.answered and status is not None and status >= 0:
            raise UserError(
                f"{self.pool.spec.id}: a worker process cannot start ({_describe_exit(status)}); "
                "what it printed says why"
            )

    def check_deadline(self) -> None:
        """Restart the process if it has been at one environment's step for too long."""
        if time.monotonic() < self.deadline:
            return
        if self._ticks() != self.ticks:
            self._reset_deadline()
            return
        self._restart(f"no answer within {self.timeout:g} s, so its process was killed")

    def join(self) -> None:
        """Wait for the process to end, as long as it goes on to close one environment after
        another."""
        ticks = -1
        while ticks != (ticks := self._ticks()):
            self.process.join(CLOSE_SECONDS)

    def kill(self) -> None:
        """Kill the process and the programs that its environments have started."""
        with suppress(OSError):  # Its process group does not exist yet, or no longer.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.close_pipe()

    def close_pipe(self) -> None:
        """Close the pipe; the process ends after the command that it is executing."""
        self.answer.close()
        self.pipe.close()

    def _restart(self, message: str) -> None:
        self.kill()
        pool, number = self.pool, self.share.number
        index = int(pool.arrays.current_env[number])
        step = int(pool.arrays.time[index])
        for group in pool.entropy:
            pool.lost[_slice(self.share.groups[group])] = True
        pool.fault(f"{pool.name(index)}, step {step}, worker {number}: {message}")
        self._start()
        for group, entropy in pool.entropy.items():
            self.send("begin", group, entropy)

    def _ticks(self) -> int:
        return int(self.pool.arrays.ticks[self.share.number])

    def _reset_deadline(self) -> None:
        self.ticks = self._ticks()
        self.deadline = time.monotonic() + self.timeout


def sample_actions(spec: Spec, random: np.random.Generator, avail: np.ndarray) -> np.ndarray:
    """Uniform available actions `[*batch, agent]`, or, if continuous, `[*batch, agent, dimension]`
    in [-1, 1]. `avail`: `[*batch, agent, action]`."""
    if spec.continuous:
        return random.uniform(-1, 1, avail.shape).astype(np.float32)
    return np.where(avail, random.random(avail.shape), -1.0).argmax(-1).astype(np.int32)


def seconds_per_step(env: HostEnv, steps: int = 200) -> float:
    """Mean duration of a step of one environment over `steps` uniform actions, resets included."""
    random = np.random.default_rng(0)
    start = time.perf_counter()
    observation = env.reset(0)
    for _ in range(steps):
        timestep = env.step(sample_actions(env.spec, random, observation.avail))
        observation = timestep.observation
        if timestep.terminated or timestep.truncated:
            observation = env.reset(int(random.integers(2**31)))
    return (time.perf_counter() - start) / steps


def first_observation(env: HostEnv) -> Observation:
    """The observation after a reset with seed 0. One step is tried as well. Raises `UserError` if
    anything differs from the spec."""
    spec = env.spec
    with explain_errors(f"{spec.id}: reset fails"):
        observation = env.reset(0)
    if not isinstance(observation, Observation):
        raise UserError(
            f"{spec.id}: reset returns {describe_value(observation)}, not an Observation"
        )
    check_alive(f"{spec.id}: reset gives", observation, spec)
    alive = None if observation.alive is None else np.empty((1, spec.agents), bool)
    buffer = Observation(
        np.empty((1, spec.agents, spec.obs), np.float32),
        np.empty((1, spec.state), np.float32),
        np.empty((1, spec.agents, spec.max_actions), bool),
        alive,
    )
    try:
        write_observation(observation, select(buffer, 0))
        check_values(select(buffer, 0))
    except Fault as fault:
        raise UserError(f"{spec.id}: in the first observation {describe_error(fault)}") from None
    first = Observation(*(None if x is None else np.array(x) for x in observation))
    arrays = SharedArrays(multiprocessing, spec, 1, 1, alive is not None)
    action = sample_actions(spec, np.random.default_rng(0), select(buffer, 0).avail)
    trial = WorkerEnvs(lambda: env, spec, arrays, Share(0, {0: range(1)}, {0: 0}))
    with explain_errors(f"{spec.id}: step fails"):
        trial.try_step(env, action)
    return first


def exit_in_worker() -> None:
    """End this process if it is a worker that is importing the main module of its parent, which has
    no `if __name__ == "__main__":` around its calls. The parent says so."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(UNGUARDED)


def _pickled(factory: Factory, spec: Spec) -> bytes:
    """`factory` and `spec` for a worker process: what cannot be imported there, such as a class of
    a notebook, by value. Raises `UserError` if they cannot be sent."""
    try:
        return cloudpickle.dumps((factory, spec))
    except Exception as error:  # Objects raise anything if they cannot be pickled.
        raise UserError(
            f"{spec.id}: cannot be sent to a worker process ({describe_error(error)}); {SENDABLE}"
        ) from None


def _share(indices: range, number: int, workers: int) -> range:
    """Consecutive `indices` for one of `workers`; the sizes of the shares differ by at most one."""
    return indices[len(indices) * number // workers : len(indices) * (number + 1) // workers]


def _slice(indices: range) -> slice:
    return slice(indices.start, indices.stop)


def _describe_exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with status {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
