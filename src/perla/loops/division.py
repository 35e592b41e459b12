"""The division of a seed's environments over devices (data-parallel training)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from perla import parallel
from perla.errors import UserError
from perla.loops.seeds import SeedState

COMMON = PartitionSpec()
"""Arrays that every device of a seed has."""


@dataclass(frozen=True)
class Division:
    """The devices of a seed, each with its own environments and the whole learner."""

    mesh: Mesh | None
    """The devices; none: the environments are not divided."""
    by_env: tuple[str, ...]
    """The fields of the learner that have an environment axis."""

    @classmethod
    def create(
        cls, devices: Sequence[jax.Device], count: int, by_env: tuple[str, ...] | None
    ) -> Division:
        """The division over the first `count` of the `devices`.

        Raises `UserError` if there are not as many, or if the learner cannot be divided: its
        `by_env` is none.
        """
        if count == 1:
            return cls(None, ())
        if by_env is None:
            raise UserError(
                f"data_parallel = {count}: this method's learner cannot divide its environments "
                "over devices; leave it out"
            )
        if count > len(devices):
            hint = ""
            if devices[0].platform == "cpu":  # Their number is fixed when JAX starts.
                hint = f"; set JAX_NUM_CPU_DEVICES={count} before Python starts"
            here = "1 device" if len(devices) == 1 else f"{len(devices)} devices"
            raise UserError(f"data_parallel = {count}: JAX has {here} here{hint}")
        return cls(Mesh(np.array(devices[:count]), (parallel.AXIS,)), by_env)

    @property
    def devices(self) -> int:
        """The number of devices of a seed."""
        return 1 if self.mesh is None else self.mesh.size

    def split(self, f: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """`f` on each device with its own environments, if they are divided."""
        return parallel.split(f, self.mesh, in_specs, out_specs)

    def layout(self, state: SeedState, *, vectorised: bool = False) -> SeedState:
        """The axis of every array of a `state` that is divided, after the seed axis if the seeds
        are `vectorised`."""
        by_env = PartitionSpec(*[None] * vectorised, parallel.AXIS)
        layout = jax.tree.map(lambda _: COMMON, state)
        return layout._replace(
            learner=self.learner_layout(state.learner, by_env),
            runner_state=jax.tree.map(lambda _: by_env, state.runner_state),
        )

    def learner_layout(self, learner: Any, by_env: PartitionSpec) -> Any:
        """The layout of a learner, whose arrays with an environment axis are divided `by_env`."""
        layout = jax.tree.map(lambda _: COMMON, learner)
        if not self.by_env:
            return layout
        return eqx.tree_at(
            lambda learner: [getattr(learner, name) for name in self.by_env],
            layout,
            [by_env] * len(self.by_env),
        )

    def places(self, layout: SeedState | None) -> SeedState | None:
        """The places of arrays with this layout. The compiler has to be told, as it would choose
        others for arrays without elements."""
        if self.mesh is None or layout is None:
            return None
        return jax.tree.map(partial(NamedSharding, self.mesh), layout)
