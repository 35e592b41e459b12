"""The worker process, which steps several host environments.

It imports no JAX unless the environment does.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import parent_process
from typing import Any, NamedTuple

import numpy as np

from perla.envs.protocol import HostEnv, Observation, Spec, TimeStep
from perla.envs.values import Fault, to_array, to_flag
from perla.errors import UserError

Factory = Callable[[], HostEnv]
"""Makes an environment. It is sent to other processes by cloudpickle."""

Entropy = Sequence[Sequence[int]]
"""Seed words `[env, word]`; they determine everything random in the episodes."""


PERMANENT = (
    UserError, ImportError, AttributeError, NameError, TypeError, SyntaxError, NotImplementedError,
)  # fmt: skip
"""Mistakes in a program, which do not go away if it is tried again."""

UNGUARDED = 78
"""Exit status of a worker whose main module starts perla again when it is imported."""


class Share(NamedTuple):
    """The environments that one worker steps."""

    number: int
    """The worker's number."""
    groups: Mapping[int, range]
    """This worker's environments in each group."""
    firsts: Mapping[int, int]
    """The first environment of each group, over all workers."""


class SharedArrays:
    """NumPy arrays shared between processes, `[env, ...]` unless stated otherwise.

    `observation` and `final` are `Observation`s of arrays. `action`, `active` (environments that
    the step is for), `reward`, `terminated`, `truncated` and `won` belong to the last step.
    `episode` counts from the group's last reset and `time` from the episode's first step.
    `current_env` `[worker]` is the environment that a worker is stepping, and `ticks` `[worker]`
    counts how often it has moved on to one.
    """

    action: np.ndarray
    active: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    won: np.ndarray
    episode: np.ndarray
    time: np.ndarray
    current_env: np.ndarray
    ticks: np.ndarray

    def __init__(self, context: Any, spec: Spec, num_envs: int, workers: int, alive: bool) -> None:
        agents, actions = spec.agents, spec.max_actions
        seen: dict[str, Any] = {
            "obs": ((num_envs, agents, spec.obs), np.float32),
            "state": ((num_envs, spec.state), np.float32),
            "avail": ((num_envs, agents, actions), np.bool_),
        }
        if alive:
            seen["alive"] = ((num_envs, agents), np.bool_)
        action = (num_envs, agents, actions) if spec.continuous else (num_envs, agents)
        self.layout: dict[str, Any] = {
            "action": (action, np.float32 if spec.continuous else np.int32),
            "active": ((num_envs,), np.bool_),
            "reward": ((num_envs, agents), np.float32),
            "terminated": ((num_envs,), np.bool_),
            "truncated": ((num_envs,), np.bool_),
            "won": ((num_envs,), np.float32),
            "episode": ((num_envs,), np.int64),
            "time": ((num_envs,), np.int64),
            "current_env": ((workers,), np.int64),
            "ticks": ((workers,), np.int64),
            **{f"observation.{name}": kind for name, kind in seen.items()},
            **{f"final.{name}": kind for name, kind in seen.items()},
        }
        size = sum(_aligned(shape, dtype) for shape, dtype in self.layout.values())
        self.buffer = context.RawArray("b", max(size, 1))
        self._map()

    def __getstate__(self) -> dict[str, Any]:
        return {"layout": self.layout, "buffer": self.buffer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def _map(self) -> None:
        arrays, offset = {}, 0
        for name, (shape, dtype) in self.layout.items():
            count = int(np.prod(shape))
            flat = np.frombuffer(self.buffer, dtype, count, offset) if count else np.empty(0, dtype)
            arrays[name] = flat.reshape(shape)
            offset += _aligned(shape, dtype)
        self.observation, self.final = (
            Observation(*(arrays.get(f"{which}.{name}") for name in Observation._fields))
            for which in ("observation", "final")
        )
        self.__dict__.update({name: a for name, a in arrays.items() if "." not in name})


def _aligned(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of an array, rounded up to a cache line."""
    return -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64


def select(observation: Observation, index: int | list[int]) -> Observation:
    """Index an `[env, ...]` observation: views for one environment, copies of the data for a
    list."""
    return Observation(*(None if x is None else x[index] for x in observation))


def write_observation(observation: Observation, into: Observation) -> None:
    """Write one environment's `observation`; raise `Fault` if a shape is wrong."""
    for name, value, target in zip(Observation._fields, observation, into, strict=True):
        if target is None or value is None:
            if target is not value:
                change = "is set but was None" if target is None else "is None but was set"
                raise Fault(f"`{name}` {change} in the first observation")
            continue
        write_array(name, value, target)


def write_array(name: str, value: Any, target: np.ndarray) -> None:
    """Write the array called `name`; raise `Fault` if its shape is wrong, or its type is another
    kind of value."""
    value = to_array(name, value, target.dtype)
    if value.shape != target.shape:
        raise Fault(f"`{name}` has shape {value.shape}, expected {target.shape}")
    target[...] = value


def check_same(observation: Observation, final: Observation) -> None:
    """Raise `Fault` unless a step's `observation` equals its `final`."""
    for name, one, other in zip(Observation._fields, observation, final, strict=True):
        if one is not other and not np.array_equal(one, other):
            raise Fault(f"`{name}` differs between `observation` and `final`; it must be the same")


def check_values(observation: Observation, **others: np.ndarray) -> None:
    """Raise `Fault` unless all `[*batch, ...]` numbers are finite and every agent has an action."""
    for name, value in {**observation._asdict(), **others}.items():
        if value is not None and value.dtype == np.float32 and not np.isfinite(value).all():
            raise Fault(f"`{name}` holds numbers that are not finite")
    if not (some := observation.avail.any(-1)).all():
        agent = int(np.argmin(some)) % some.shape[-1]
        raise Fault(f"`avail` leaves agent {agent} no action")


class WorkerEnvs:
    """The environments of one worker, by their index in the pool."""

    def __init__(self, factory: Factory, spec: Spec, arrays: SharedArrays, share: Share) -> None:
        self.factory, self.spec, self.arrays, self.share = factory, spec, arrays, share
        self.envs: dict[int, HostEnv] = {}
        self.entropy: dict[int, Entropy] = {}
        self.faults: list[tuple[int, int, str]] = []
        """`(env, step, message)` of the faults since the last answer to the parent."""
        indices = list(itertools.chain(*share.groups.values()))
        self.observation = {index: select(arrays.observation, index) for index in indices}
        self.final = {index: select(arrays.final, index) for index in indices}

    def begin(self, group: int, entropy: Entropy) -> None:
        """Begin an episode in every environment of `group`."""
        self.entropy[group] = entropy
        for index in self.share.groups[group]:
            self._begin(group, index)

    def step(self, group: int) -> None:
        """Step the active environments of `group` and reset those whose episode ends."""
        arrays, indices = self.arrays, np.array(self.share.groups[group], int)
        active = indices[arrays.active[indices]].tolist()
        stepped = [index for index in active if self._try(self._step, group, index)]
        # One check for all environments: checking each costs 5% of a fast environment's step.
        try:
            check_values(select(arrays.final, stepped), reward=arrays.reward[stepped])
        except Fault:
            stepped = [index for index in stepped if self._try(self._check, group, index)]
        for final, observation in zip(arrays.final, arrays.observation, strict=True):
            if observation is not None:
                observation[stepped] = final[stepped]
        for index in stepped:
            if arrays.terminated[index] or arrays.truncated[index]:
                self._try(self._begin, group, index)

    def close(self) -> None:
        """Close all environments."""
        while self.envs:
            index, env = self.envs.popitem()
            self._set_current(index)
            with suppress(Exception):
                env.close()

    def _try(self, do: Callable[[int, int], None], group: int, index: int) -> bool:
        """Call `do(group, index)` and return True. If it raises, record a fault, recreate the
        environment and return False."""
        try:
            do(group, index)
        except Exception as error:
            self.faults.append((index, int(self.arrays.time[index]), describe_error(error)))
            with suppress(Exception):
                self.envs.pop(index).close()
            self._begin(group, index)
            return False
        return True

    def _set_current(self, index: int) -> None:
        self.arrays.current_env[self.share.number] = index
        self.arrays.ticks[self.share.number] += 1

    def _begin(self, group: int, index: int) -> None:
        self._set_current(index)
        arrays = self.arrays
        arrays.episode[index] += 1
        arrays.time[index] = 0
        if index not in self.envs:
            self.envs[index] = self.factory()
        words = self.entropy[group][index - self.share.firsts[group]]
        sequence = np.random.SeedSequence(words, spawn_key=(int(arrays.episode[index]),))
        seed = int(sequence.generate_state(1)[0]) >> 1  # Libraries refuse more than 31 bits.
        write_observation(self.envs[index].reset(seed), self.observation[index])
        check_values(self.observation[index])

    def _step(self, group: int, index: int) -> None:
        self._set_current(index)
        arrays = self.arrays
        arrays.time[index] += 1
        timestep: TimeStep = self.envs[index].step(arrays.action[index].copy())
        write_observation(timestep.final, self.final[index])
        if timestep.observation is not timestep.final:
            check_same(timestep.observation, timestep.final)
        write_array("reward", timestep.reward, arrays.reward[index])
        terminated = to_flag("terminated", timestep.terminated)
        truncated = to_flag("truncated", timestep.truncated) and not terminated
        time, limit = int(arrays.time[index]), self.spec.limit
        if truncated and time != limit and not self.spec.early_truncation:
            raise Fault(f"truncated after {time} of {limit} steps; spec.early_truncation is False")
        if time == limit and not (terminated or truncated):
            raise Fault(f"not truncated after {time} steps, although spec.limit is {limit}")
        arrays.terminated[index], arrays.truncated[index] = terminated, truncated
        arrays.won[index] = np.nan
        if timestep.won is not None:
            write_array("won", timestep.won, arrays.won[index, ...])

    def _check(self, group: int, index: int) -> None:
        check_values(self.final[index], reward=self.arrays.reward[index])

    def try_step(self, env: HostEnv, action: np.ndarray) -> None:
        """Make a step of `env`, an environment at the beginning of an episode, and check it.

        Raises `Fault` if it breaks the contract, and what `env` raises.
        """
        self.envs[0] = env
        self.arrays.action[0] = self.spec.bounded(action)
        self._step(0, 0)
        self._check(0, 0)


def serve(pipe: Connection, payload: bytes, arrays: SharedArrays, share: Share) -> None:
    """Execute the commands from `pipe` until it closes. `payload` is the pickled factory and spec.

    Commands are `("begin", group, entropy)` and `("step", group, None)`. Each is answered by
    `("done", group, faults)`. If an episode cannot begin, the answer is
    `("failed", env, message)`, or `("hopeless", env, message)` for a mistake in a program (with
    environment −1 if the payload cannot be read), and the process ends.

    The process leads its own process group: Ctrl-C reaches the parent only, and programs that the
    environments have started can be killed with it.
    """
    os.setpgid(0, 0)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        factory, spec = pickle.loads(payload)
    except Exception as error:  # Unpickling imports the user's modules.
        with suppress(ConnectionError):
            pipe.send(("hopeless", -1, describe_error(error)))
        return
    envs = WorkerEnvs(factory, spec, arrays, share)
    with suppress(EOFError, ConnectionError), closing(envs):
        while True:
            command, group, entropy = pipe.recv()
            try:
                if command == "begin":
                    envs.begin(group, entropy)
                else:
                    envs.step(group)
            except BaseException as error:
                kind = "hopeless" if isinstance(error, PERMANENT) else "failed"
                failed = kind, int(arrays.current_env[share.number]), describe_error(error)
                envs.close()  # The parent kills this process as soon as it receives the message.
                pipe.send(failed)
                return
            pipe.send(("done", group, envs.faults))
            envs.faults = []


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def describe_error(error: BaseException) -> str:
    """`error` in one line of at most 200 characters."""
    text = " ".join(str(error).split())
    if not isinstance(error, (Fault, UserError)):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
