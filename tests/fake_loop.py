"""A trainer without learning: exact, instant, and as stateful as a real one."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from perla.flops import Work
from perla.footprint import Footprint
from perla.runs import execute, loop, replay


class FakeTrainer:
    """Random walks of a seed's `weights`, whose mean is the return."""

    def __init__(
        self, env: Any, config: Any, *, seeds, steps, eval_episodes=32, data_parallel=1
    ) -> None:
        self.seeds = seeds
        self.per_update = config.num_envs * config.length(env.spec.limit)

    def compile(self) -> None:
        pass

    def work_per_step(self):
        return Work(1e6, 1e5)

    def footprint(self, absolute_episodes):
        return Footprint(1, 1, 0, 0, 0, 0, 0, 0)

    def init(self):
        return [
            {"weights": np.zeros(3, np.float32), "key": np.array([0, seed], np.uint32)}
            for seed in self.seeds
        ]

    def train(self, states, until, updates):
        states = [self._walk(state, until, updates) for state in states]
        steps = [int(state["key"][0]) * self.per_update for state in states]
        return states, min(*steps, until)

    def evaluate(self, states):
        return states, [self._metrics(state) for state in states]

    def faults(self, states):
        return [None for _ in states]

    def absolute(self, states, episodes=320):
        return [
            {"return": float(state["weights"].max()), "episode_length": 3.0} for state in states
        ]

    def export(self, states):
        return {name: np.stack([state[name] for state in states]) for name in states[0]}

    def restore(self, exported):
        return [
            {name: leaf[index] for name, leaf in exported.items()}
            for index in range(len(self.seeds))
        ]

    def template(self):
        count = len(self.seeds)
        return {
            "weights": jax.ShapeDtypeStruct((count, 3), np.float32),
            "key": jax.ShapeDtypeStruct((count, 2), np.uint32),
        }

    def actor(self, exported, index, *, best):
        assert set(exported) == {"weights", "key"}
        return ("best" if best else "last", index)

    def play(self, actor, key, greedy):
        raise AssertionError("nobody asks this loop to play")

    def close(self):
        pass

    def _walk(self, state, until, updates):
        weights, key = state["weights"].copy(), state["key"].copy()
        last = key[0] + updates
        while key[0] * self.per_update < until and key[0] < last:
            weights += np.random.default_rng(key).normal(size=3).astype(np.float32)
            key[0] += 1
        return {"weights": weights, "key": key}

    def _metrics(self, state):
        mean = float(state["weights"].mean())
        # Before any update there is no error to report.
        updates = int(state["key"][0])
        measured = {"step": updates * self.per_update, "return": mean}
        return measured | ({"td_error": mean**2} if updates else {"ent_coef": float("nan")})


def install(monkeypatch, trainer=FakeTrainer):
    """Train with `trainer`, film nothing, and save checkpoints as often as a run asks for."""
    monkeypatch.setattr(execute, "Trainer", trainer)
    monkeypatch.setattr(replay, "film", frames)
    monkeypatch.setattr(loop, "BETWEEN_SECONDS", 0.0)


def frames(*_: Any, **__: Any) -> list[np.ndarray]:
    """A film of three small pictures."""
    return [np.full((8, 8, 3), shade, np.uint8) for shade in (0, 100, 200)]
