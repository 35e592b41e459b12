"""The interface of a trainer, which runs rely on."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from perla.flops import Work
from perla.footprint import Footprint
from perla.loops.evaluate import Episodes
from perla.loops.nonfinite import NonFinite


@runtime_checkable
class AnyTrainer(Protocol):
    """A training loop: `perla.loops.anakin.Trainer` for JAX environments and
    `perla.loops.host.Trainer` for host environments.

    `states` holds the states of all seeds; only the trainer looks inside.
    """

    def compile(self) -> None:
        """Compile everything now rather than during the first interval."""
        ...

    def work_per_step(self) -> Work:
        """The work of training for each environment step."""
        ...

    def footprint(self, absolute_episodes: int, /) -> Footprint:
        """The memory of training and of all evaluations, estimated before anything is compiled."""
        ...

    def init(self) -> Any:
        """The states before any training."""
        ...

    def train(self, states: Any, until: int, updates: int, /) -> tuple[Any, int]:
        """Train every seed until it has made `until` steps, with at most `updates` updates.

        Returns the new states, and the steps that every seed has made, at most `until`; a seed with
        a fault counts as having made all. The number of updates of a call changes no result.
        """
        ...

    def evaluate(self, states: Any, /) -> tuple[Any, list[dict[str, float]]]:
        """Evaluate every seed, and begin the next interval.

        Returns the new states and the metrics of each seed since the last call: means over its
        updates, and those of the evaluation, among them `step` and `return`.
        """
        ...

    def faults(self, states: Any, /) -> list[NonFinite | None]:
        """The first number of each seed that is not finite, None if all are finite. A seed with a
        fault trains no further, and its metrics mean nothing."""
        ...

    def absolute(self, states: Any, episodes: int, /) -> list[dict[str, float]]:
        """The metrics of each seed's best parameters over `episodes` new episodes."""
        ...

    def export(self, states: Any, /) -> Any:
        """`states` as NumPy arrays, complete to the bit."""
        ...

    def restore(self, exported: Any, /) -> Any:
        """The inverse of `export`."""
        ...

    def template(self) -> Any:
        """The shapes and types of the result of `export`, without computing it."""
        ...

    def actor(self, exported: Any, index: int, /, *, best: bool) -> Any:
        """The best actor of the seed at position `index`, or its last one."""
        ...

    def play(self, actor: Any, key: Any, greedy: Any, /) -> Episodes:
        """One episode of `actor` for each entry of `greedy`."""
        ...

    def close(self) -> None:
        """Release processes and environments; no call follows."""
        ...
