"""The process that steps some copies of a host world. It imports no JAX unless the world does."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import parent_process
from typing import Any, NamedTuple

import numpy as np

from perla.envs.protocol import HostEnv, Observation, Spec, TimeStep

Factory = Callable[[], HostEnv]
"""Makes a copy of a world. Other processes are sent it, so it must be picklable: a function of a
module, or a `functools.partial` of one."""

Entropy = Sequence[Sequence[int]]
"""Words `[copy, word]`, from which all that is left to chance follows."""


class Fault(Exception):
    """A world that does not do what its `Spec` says."""


class Share(NamedTuple):
    """What one worker steps."""

    number: int
    """The worker's own."""
    groups: Mapping[int, range]
    """Its copies in each group."""
    firsts: Mapping[int, int]
    """The first copy of each group, whoever steps it."""


class SharedArrays:
    """NumPy arrays that processes share, `[copy, ...]` unless said.

    `observation` and `final` are `Observation`s of arrays; `action`, `active` (which copies a step
    is for), `reward`, `terminated`, `truncated` and `won` are of the last step; `episode` counts
    from the group's beginning and `time` from the episode's; `current_env` and `ticks` `[worker]` are the
    copy that a worker has in hand and how often it has taken one up.
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

    def __init__(self, context: Any, spec: Spec, copies: int, workers: int, alive: bool) -> None:
        agents, actions = spec.agents, spec.max_actions
        seen: dict[str, Any] = {
            "obs": ((copies, agents, spec.obs), np.float32),
            "state": ((copies, spec.state), np.float32),
            "avail": ((copies, agents, actions), np.bool_),
        }
        if alive:
            seen["alive"] = ((copies, agents), np.bool_)
        action = (copies, agents, actions) if spec.continuous else (copies, agents)
        self.layout: dict[str, Any] = {
            "action": (action, np.float32 if spec.continuous else np.int32),
            "active": ((copies,), np.bool_),
            "reward": ((copies, agents), np.float32),
            "terminated": ((copies,), np.bool_),
            "truncated": ((copies,), np.bool_),
            "won": ((copies,), np.float32),
            "episode": ((copies,), np.int64),
            "time": ((copies,), np.int64),
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


def place(observation: Observation, copy: int | list[int]) -> Observation:
    """One copy's own of an `[copy, ...]` observation: views. Of several copies: what they hold."""
    return Observation(*(None if x is None else x[copy] for x in observation))


def put(observation: Observation, into: Observation) -> None:
    """Write one copy's `observation`; `Fault` unless it has the right shapes."""
    for name, value, room in zip(Observation._fields, observation, into, strict=True):
        if room is None or value is None:
            if room is not value:
                there = "is there now and was not" if room is None else "was there and is None"
                raise Fault(f"`{name}` {there} in the first observation")
            continue
        write(name, value, room)


def write(name: str, value: Any, room: np.ndarray) -> None:
    """Write what is called `name`; `Fault` unless it fits."""
    value = np.asarray(value)
    if value.shape != room.shape:
        raise Fault(f"`{name}` has shape {value.shape}, expected {room.shape}")
    room[...] = value


def agree(observation: Observation, final: Observation) -> None:
    """`Fault` unless a step that leads to `final` leads to the same `observation`."""
    for name, one, other in zip(Observation._fields, observation, final, strict=True):
        if one is not other and not np.array_equal(one, other):
            raise Fault(f"`{name}` of `observation` is not that of `final`; a step leads to both")


def check(observation: Observation, **others: np.ndarray) -> None:
    """`Fault` unless all numbers are finite, and every agent has an action, `[*copies, ...]`."""
    for name, value in {**observation._asdict(), **others}.items():
        if value is not None and value.dtype == np.float32 and not np.isfinite(value).all():
            raise Fault(f"`{name}` holds numbers that are not finite")
    if not (some := observation.avail.any(-1)).all():
        agent = int(np.argmin(some)) % some.shape[-1]
        raise Fault(f"`avail` leaves agent {agent} no action")


class Copies:
    """The copies of one worker."""

    def __init__(self, factory: Factory, spec: Spec, arrays: SharedArrays, share: Share) -> None:
        self.factory, self.spec, self.arrays, self.share = factory, spec, arrays, share
        self.envs: dict[int, HostEnv] = {}
        self.entropy: dict[int, Entropy] = {}
        self.faults: list[tuple[int, int, str]] = []
        """(copy, step, what) since they were last told."""
        own = list(itertools.chain(*share.groups.values()))
        self.observation = {copy: place(arrays.observation, copy) for copy in own}
        self.final = {copy: place(arrays.final, copy) for copy in own}

    def begin(self, group: int, entropy: Entropy) -> None:
        """Begin an episode in every copy of `group`."""
        self.entropy[group] = entropy
        for copy in self.share.groups[group]:
            self._begin(group, copy)

    def step(self, group: int) -> None:
        """Step the active copies of `group`; those whose episode ends begin the next."""
        arrays, own = self.arrays, np.array(self.share.groups[group], int)
        active = own[arrays.active[own]].tolist()
        copies = [copy for copy in active if self._try(self._step, group, copy)]
        # All at once: to look at each alone takes a twentieth of the time of a quick world's step.
        try:
            check(place(arrays.final, copies), reward=arrays.reward[copies])
        except Fault:
            copies = [copy for copy in copies if self._try(self._check, group, copy)]
        for new, room in zip(arrays.final, arrays.observation, strict=True):
            if room is not None:
                room[copies] = new[copies]
        for copy in copies:
            if arrays.terminated[copy] or arrays.truncated[copy]:
                self._try(self._begin, group, copy)

    def close(self) -> None:
        """Let go of all copies."""
        while self.envs:
            copy, env = self.envs.popitem()
            self._take(copy)
            with suppress(Exception):
                env.close()

    def _try(self, do: Callable[[int, int], None], group: int, copy: int) -> bool:
        """Do something to a copy. Where that fails it is a fault, the copy is made anew, and what
        is returned is false."""
        try:
            do(group, copy)
        except Exception as error:
            self.faults.append((copy, int(self.arrays.time[copy]), line(error)))
            with suppress(Exception):
                self.envs.pop(copy).close()
            self._begin(group, copy)
            return False
        return True

    def _take(self, copy: int) -> None:
        self.arrays.current_env[self.share.number] = copy
        self.arrays.ticks[self.share.number] += 1

    def _begin(self, group: int, copy: int) -> None:
        self._take(copy)
        arrays = self.arrays
        arrays.episode[copy] += 1
        arrays.time[copy] = 0
        if copy not in self.envs:
            self.envs[copy] = self.factory()
        words = self.entropy[group][copy - self.share.firsts[group]]
        chance = np.random.SeedSequence(words, spawn_key=(int(arrays.episode[copy]),))
        seed = int(chance.generate_state(1)[0])
        put(self.envs[copy].reset(seed), self.observation[copy])
        check(self.observation[copy])

    def _step(self, group: int, copy: int) -> None:
        self._take(copy)
        arrays = self.arrays
        arrays.time[copy] += 1
        timestep: TimeStep = self.envs[copy].step(arrays.action[copy].copy())
        put(timestep.final, self.final[copy])
        if timestep.observation is not timestep.final:
            agree(timestep.observation, timestep.final)
        write("reward", timestep.reward, arrays.reward[copy])
        terminated = bool(timestep.terminated)
        truncated = bool(timestep.truncated) and not terminated
        time, limit = int(arrays.time[copy]), self.spec.limit
        if truncated and time != limit:
            raise Fault(f"truncated after {time} steps, and its spec says {limit}")
        if time == limit and not (terminated or truncated):
            raise Fault(f"goes on after {time} steps, where its spec says that it is truncated")
        arrays.terminated[copy], arrays.truncated[copy] = terminated, truncated
        arrays.won[copy] = np.nan if timestep.won is None else timestep.won

    def _check(self, group: int, copy: int) -> None:
        check(self.final[copy], reward=self.arrays.reward[copy])


def serve(
    pipe: Connection, factory: Factory, spec: Spec, arrays: SharedArrays, share: Share
) -> None:
    """Do what comes through `pipe` until it closes: `("begin", group, entropy)` or
    `("step", group, None)`. Each is answered by `("done", group, faults)`; an episode that cannot
    be begun by `("failed", copy, why)`, which is the end.

    Its process leads a group of its own: Ctrl-C is for the parent to hear, and whatever the worlds
    have started can be ended with it."""
    os.setpgid(0, 0)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    copies = Copies(factory, spec, arrays, share)
    with suppress(EOFError, ConnectionError), closing(copies):
        while True:
            command, group, entropy = pipe.recv()
            try:
                if command == "begin":
                    copies.begin(group, entropy)
                else:
                    copies.step(group)
            except BaseException as error:
                failed = "failed", int(arrays.current_env[share.number]), line(error)
                copies.close()  # Whoever hears of it ends this process at once.
                pipe.send(failed)
                return
            pipe.send(("done", group, copies.faults))
            copies.faults = []


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def line(error: BaseException) -> str:
    """What went wrong, in a line of at most 200 characters."""
    text = " ".join(str(error).split())
    if not isinstance(error, Fault):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
