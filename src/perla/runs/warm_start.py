"""A run that begins with the parameters of another one.

The first checkpoint of such a run is written before its training, so that its folder is complete by
itself. The other run may be of another environment with the same shapes; that environment is not
made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.errors import UserError
from perla.loops.protocol import AnyTrainer
from perla.runs import checkpoint
from perla.runs.resume_point import ResumePoint
from perla.runs.spec import Run, WarmStart
from perla.runs.store import Folder

Part = Literal["all", "actor"]
ANEW = (".replay_state", ".critic_hidden_state", ".epsilon")
"""Parts of a learner that depend on its environments or on the progress of a run: they are never
taken over."""


class Source(NamedTuple):
    """The newest whole checkpoint of a run."""

    path: Path
    digest: str
    """SHA-256 of the checkpoint."""
    arrays: dict[str, np.ndarray]
    """Its arrays `[seed, …]` by their paths in the tree."""

    def describe(self, part: Part) -> WarmStart:
        """The warm start from `part` of it, as data."""
        return WarmStart(checkpoint=self.digest, part=part)


def read(dir: Path) -> Source:
    """The newest whole checkpoint of the run in `dir`. Raises `UserError` if there is none."""
    errors: list[UserError] = []
    for path in checkpoint.newest_first(Folder.open(dir).checkpoints):
        try:
            arrays, meta = checkpoint.read(path)
        except UserError as error:
            errors.append(error)
            continue
        return Source(path, meta.digest, arrays)
    raise errors[0] if errors else UserError(f"{dir}: has no checkpoint to begin from")


def begin(run: Run, trainer: AnyTrainer, source: Source) -> ResumePoint:
    """The state of `run` before its first step, with the parameters of `source`.

    Seed number i has those of the source's seed number i, and so on in turn if there are fewer. The
    policies are the best evaluated ones for the part `actor`, and the last ones for `all`. Raises
    `UserError` if a shape differs.
    """
    assert run.warm_start is not None
    exported = trainer.export(trainer.init())
    places = _places_of_actor(exported.learner)
    leaves, structure = jax.tree.flatten(exported.learner)
    if run.warm_start.part == "all":
        names = [f".learner{name}" for name, _ in checkpoint.named(exported.learner)]
        targets = list(range(len(leaves)))
    else:
        names = [f".best_actor{name}" for name, _ in checkpoint.named(exported.best_actor)]
        targets = places
    for place, name in zip(targets, names, strict=True):
        if not any(word in name for word in ANEW):
            leaves[place] = _taken_over(leaves[place], name, source)
    best_actor = jax.tree.unflatten(
        jax.tree.structure(exported.best_actor), [leaves[place] for place in places]
    )
    learner = jax.tree.unflatten(structure, leaves)
    exported = exported._replace(learner=learner, best_actor=best_actor)
    return ResumePoint(exported, -1, 0, 0, 0.0, 0.0)


def _places_of_actor(learner: Any) -> list[int]:
    """The positions of the actor's arrays among those of the learner, whose view it is."""
    one = jax.tree.map(lambda x: jnp.asarray(x[0]), learner)
    jaxpr = jax.make_jaxpr(lambda learner: learner.actor)(one).jaxpr
    return [jaxpr.invars.index(variable) for variable in jaxpr.outvars]


def _taken_over(leaf: np.ndarray, name: str, source: Source) -> np.ndarray:
    """The array of `source` with this `name`, for the seeds of `leaf`."""
    found = source.arrays.get(name)
    actual, wanted = (checkpoint.signature(None if x is None else x[0]) for x in (found, leaf))
    if found is None or actual != wanted:
        hint = "; take --from-part actor" if found is None else ""
        raise UserError(
            f"{source.path}: cannot begin this run: {name} is {actual}, expected {wanted}{hint}"
        )
    return np.stack([found[index % len(found)] for index in range(len(leaf))])
