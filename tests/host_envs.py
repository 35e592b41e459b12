"""Host environments for tests: NumPy alone, with known values, and with every kind of fault."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from perla.envs.protocol import Observation, Spec, TimeStep

EXAMPLES = {"patience": "a game of two"}


class Patience:
    """`probes.PATIENCE` in NumPy: two agents observe their sign and the time; at the last of
    `length` steps both receive reward 1 if both actions equal their signs.

    With a `fault`, the first environment that finds the file `trigger` at its second step removes
    the file and commits the fault; with `trigger` "always", every environment does at that step.
    With a `game`, the environment starts another program that holds this file open; `close` takes
    a moment to end the program, and then marks it as ended.
    """

    def __init__(
        self, *, length: int = 3, end: str = "terminated", fault: str = "", trigger: str = "",
        game: str = "", promise: bool = True,
    ) -> None:  # fmt: skip
        self.promise = promise
        self.length, self.end, self.fault, self.trigger = length, end, fault, trigger
        self.game, self.program = game, None

    @property
    def spec(self) -> Spec:
        return Spec(
            "tiny:patience",
            2,
            2,
            4,
            (2, 2),
            self.length,
            "common",
            early_truncation=not self.promise,
        )

    def reset(self, seed: int) -> Observation:
        self.signs = np.random.default_rng(seed).choice([-1.0, 1.0], 2)
        self.time = 0
        if self.game and self.program is None:
            with open(self.game, "wb") as file:
                self.program = subprocess.Popen(["sleep", "1000"], stdout=file)
        if self.fault == "reset" and self._due():
            raise ValueError("no game today")
        if self.fault == "mistake" and self._due():
            raise TypeError("no seed, please")
        if self.fault == "exit at once" and self._due():
            os._exit(3)
        return self._see()

    def step(self, action: np.ndarray) -> TimeStep:
        assert action.shape == (2,)
        assert action.dtype == np.int32
        self.time += 1
        over = self.time == self.length
        reward = np.full(2, float(over and bool((2 * action - 1 == self.signs).all())))
        seen = self._see()
        if (
            self.time == 2
            and self.fault not in ("", "reset", "mistake", "exit at once")
            and self._due()
        ):
            match self.fault:
                case "raise":
                    raise RuntimeError("the engine\nhas stalled")
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "exit":
                    sys.exit(3)
                case "hang":
                    time.sleep(1000)
                case "nan":
                    seen = seen._replace(obs=seen.obs * np.nan)
                case "infinite reward":
                    reward = reward + np.inf
                case "huge reward":
                    reward = reward + 1e30
                case "size":
                    seen = seen._replace(obs=seen.obs[:, :1])
                case "no action":
                    seen = seen._replace(avail=seen.avail & False)
                case "endless":
                    self.length = 10
                case "apart":
                    blank = seen._replace(obs=seen.obs * 0.0)
                    return TimeStep(seen, reward, np.False_, np.False_, blank)
                case "complex":
                    seen = seen._replace(obs=seen.obs * 1j)
                case "nan mask":
                    seen = seen._replace(avail=seen.avail * np.nan)
                case "no flag":
                    return TimeStep(seen, reward, {}, np.False_, seen)
                case "early":
                    return TimeStep(seen, reward, np.False_, np.True_, seen)
        return TimeStep(
            seen, reward, over and self.end == "terminated", over and self.end == "truncated", seen
        )

    def render(self) -> np.ndarray:
        picture = np.zeros((16, 16, 3), np.uint8)
        picture[:, : 1 + 5 * self.time] = 200
        return picture

    def close(self) -> None:
        if self.program is not None:
            time.sleep(0.7)
            self.program.kill()
            self.program.wait()
            Path(f"{self.game}.ended").touch()

    def _due(self) -> bool:
        if self.trigger == "always":
            return True
        try:
            Path(self.trigger).unlink()
        except FileNotFoundError:
            return False
        return True

    def _see(self) -> Observation:
        # The last feature of the state says whether the worker has imported JAX.
        jax = float("jax" in sys.modules)
        own = np.stack([self.signs, np.full(2, self.time)], -1)
        return Observation(own, np.array([*self.signs, self.time, jax]), np.ones((2, 2), bool))


class Echo:
    """The reward of its one agent, and the image, are the two numbers of its action."""

    spec = Spec("tiny:echo", 1, 1, 1, (2,), 4, "common", continuous=True)

    def reset(self, seed: int) -> Observation:
        self.time, self.given = 0, np.zeros((1, 2), np.float32)
        return self._see()

    def step(self, action: np.ndarray) -> TimeStep:
        self.time, self.given = self.time + 1, action
        seen = self._see()
        return TimeStep(seen, action.sum(-1), np.False_, np.bool_(self.time == 4), seen)

    def render(self) -> np.ndarray:
        return self.given

    def close(self) -> None:
        pass

    def _see(self) -> Observation:
        return Observation(np.zeros((1, 1)), self.given[0, :1], np.ones((1, 2), bool))


def make_env(name: str, **options) -> Patience:
    assert name == "patience"
    return Patience(**options)
