"""Refusal of runs that cannot fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from perla import machine
from perla.envs.protocol import Env, HostEnv
from perla.errors import UserError
from perla.footprint import Footprint
from perla.methods.offpolicy import OffPolicy
from perla.methods.ppo import PPO
from perla.runs.spec import Run, plan_evaluations, steps_per_update

PROGRAM = 850 * 2**20
"""Bytes of Python, JAX and the compiler."""
STATES = ("learner", "replay", "environments")
"""Parts that are there all the time."""
WORK = ("training", "evaluation", "absolute")
"""Parts that follow one another, and checkpoints; the largest decides."""
CHECKPOINT = "checkpoint"
SETTINGS = {
    "learner": ("hidden_size", "num_layers"),
    "replay": ("buffer_size",),
    "environments": ("num_envs",),
    "training": ("num_envs", "rollout_length"),
    "evaluation": ("eval_episodes",),
    "absolute": ("absolute_episodes",),
}
"""The settings that a part's size follows."""
MAX_STEPS = 2**31 - 1
"""The largest number of steps that a 32-bit counter holds."""


def check_memory(run: Run, env: Env | HostEnv) -> None:
    """Raise `UserError`, naming the settings, if the run needs more than this machine's memory, or
    more steps than are counted.

    The estimates are lower bounds, so that only runs too large by orders of magnitude are refused,
    before anything is allocated.
    """
    config, spec = run.config, env.spec
    observation = 4 * spec.agents * spec.obs
    rollout = steps_per_update(run, env) * observation
    plan = plan_evaluations(run, env)
    needed = {
        f"num_envs = {config.num_envs} and rollout_length = {config.rollout_length}": rollout,
        f"eval_episodes = {plan.episodes}": plan.episodes * observation,
    }
    if isinstance(config, PPO | OffPolicy):
        needed[f"hidden_size = {config.hidden_size} and num_layers = {config.num_layers}"] = (
            4 * config.hidden_size * (spec.obs + config.hidden_size * (config.num_layers - 1))
        )
    if isinstance(config, OffPolicy):
        needed[f"buffer_size = {config.buffer_size}"] = (
            config.buffer_size * config.length(spec.limit) * observation
        )
    available = machine.memory()
    for settings, size in needed.items():
        if size > available:
            raise UserError(
                f"{settings}: needs at least {size / 2**30:,.0f} GiB, and this machine has "
                f"{available / 2**30:,.0f} GiB"
            )
    if run.steps + steps_per_update(run, env) > MAX_STEPS:
        raise UserError(
            f"steps = {run.steps}: with updates of this size the step count exceeds {MAX_STEPS:,}"
        )
    # The absolute metric is played in parts of `eval_episodes`: its time grows, not its memory.
    longest = plan.absolute * (spec.limit or 1)
    if longest > MAX_STEPS:
        raise UserError(
            f"absolute_episodes = {plan.absolute}: up to {longest:,} steps, more than {MAX_STEPS:,}"
        )


def estimate(footprint: Footprint, *, folder: bool) -> dict[str, int]:
    """The bytes that a run needs at most at a time, by part.

    A checkpoint in the `folder` is made between the parts of the work, from a copy of all states,
    by way of one more.
    """
    states = {part: footprint.seeds * int(getattr(footprint, part)) for part in STATES}
    beside = {part: footprint.at_once * int(getattr(footprint, part)) for part in WORK}
    beside[CHECKPOINT] = 2 * sum(states.values()) if folder else 0
    largest = max(beside, key=lambda part: beside[part])
    return {"program": PROGRAM, **states, largest: beside[largest]}


def check_footprint(run: Run, footprint: Footprint, *, folder: bool) -> None:
    """Raise `UserError` if the run needs more memory than there is. The line has the size, the
    limit, and the settings of the first part that alone would not fit, or else of the largest."""
    parts = estimate(footprint, folder=folder)
    needed, available = sum(parts.values()), machine.memory()
    if needed <= available:
        return
    parts.pop(CHECKPOINT, None)  # It has the size of the states.
    too_large = [part for part, size in parts.items() if size > available]
    part = too_large[0] if too_large else max(parts, key=lambda part: parts[part])
    settings = SETTINGS.get(part, ())
    words = [
        f"{name} = {getattr(owner, name)}"
        for owner in (run, run.config)
        for name in settings
        if hasattr(owner, name)
    ]
    words += [f"{footprint.seeds} seeds"] if footprint.seeds > 1 else []
    raise UserError(
        f"{' and '.join(words) or 'this run'}: needs about {needed / 2**30:,.1f} GiB, and "
        f"{available / 2**30:,.1f} GiB are here"
    )


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turn an allocation failure into a `UserError` that names the settings to reduce."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
            raise UserError(
                "out of memory: reduce num_envs, rollout_length, hidden_size or the number of "
                f"seeds ({text})"
            ) from None
        raise
