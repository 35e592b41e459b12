"""The base of the learners' settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perla.config import Open


class Method(Open, frozen=True):
    """Base of the settings of a learner; their type names the learner."""

    @classmethod
    def variants(cls) -> Mapping[str, type[Method]]:
        """The settings of all learners, by tag."""
        from perla.methods.recipes import learners  # Recipes name the learners.

        return learners()

    @property
    def num_envs(self) -> int:
        """Environments stepped in parallel."""
        raise NotImplementedError

    @property
    def rollout_length(self) -> int | None:
        """Steps per environment between two updates; none: an episode."""
        raise NotImplementedError

    def length(self, limit: int | None) -> int:
        """Steps of every environment between two updates, given the `limit` of an episode."""
        raise NotImplementedError

    def create(self, spec: Any) -> Any:
        """The learner, a `perla.algos.protocol.Algorithm`, for an environment with this `Spec`;
        `UserError` where the settings do not fit. Learners of other packages define it; perla's
        own are made in `perla.algos.create`."""
        raise NotImplementedError
