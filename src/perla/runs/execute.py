"""Training a run, resuming it, and loading its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from perla import machine
from perla.envs.processes.pool import STEP_SECONDS, exit_in_worker
from perla.envs.protocol import Env, HostEnv
from perla.envs.registry import Trust, env_factory
from perla.errors import UserError, resume_command
from perla.loops import host
from perla.loops.anakin import Trainer
from perla.loops.protocol import AnyTrainer
from perla.runs import backend, checkpoint, resume_point, warm_start
from perla.runs import pictures as drawing
from perla.runs.callbacks import Callback
from perla.runs.loggers import DEFAULT, check_loggers
from perla.runs.loop import RunLoop, RunOptions
from perla.runs.memory import check_footprint, check_memory, explain_out_of_memory
from perla.runs.resume_point import ResumePoint
from perla.runs.sinks import Display, Silent
from perla.runs.spec import OnNonFinite, Run, plan_evaluations
from perla.runs.store import Folder, Record, refuse_used

CHECKPOINT_SECONDS = 10.0
"""The time between two checkpoints. They cost time and change no number."""


MakeEnv = Callable[[], Env | HostEnv]


@dataclass
class Result:
    """A run that is finished, or was stopped by a callback. It can be pickled."""

    run: Run
    records: list[Record]
    """Every evaluation of every seed in order: the lines of `metrics.jsonl`."""
    summary: dict[str, Any]
    """Final, best and absolute metrics: the content of `summary.json`. Empty if it was stopped."""
    out: Path | None
    """The run folder, if there is one."""
    arrays: list[np.ndarray] | None = field(default=None, repr=False)
    """The leaves of the final, exported states; None: those of the folder's newest checkpoint."""
    make_env: MakeEnv | None = field(default=None, repr=False)
    """Makes the environment, if the run's id does not say how."""

    @property
    def dropped(self) -> dict[int, str]:
        """The seeds that were dropped, and the first number of each that was not finite."""
        return {entry["seed"]: entry["reason"] for entry in self.summary.get("dropped", ())}

    @property
    def dropped_episodes(self) -> dict[int, int]:
        """The number of each seed's episodes that were dropped, in training and in evaluations,
        because a host environment failed."""
        return {entry["seed"]: entry["dropped_episodes"] for entry in self.summary["seeds"]}

    @cached_property
    def trained(self) -> tuple[AnyTrainer, Any]:
        """The trainer and its final, exported states."""
        if self.arrays is None:
            assert self.out is not None
            return load(self.out, trust=(self.run.env,), make_env=self.make_env)[2:]
        _, trainer = build(self.run.replace(data_parallel=1), make_env=self.make_env)
        return trainer, jax.tree.unflatten(jax.tree.structure(trainer.template()), self.arrays)

    def __getstate__(self) -> dict[str, Any]:
        """The fields without the trainer, which holds compiled programs and processes."""
        return {name: value for name, value in vars(self).items() if name != "trained"}

    def actor(self, seed: int | None = None, *, best: bool = True) -> Any:
        """The policy of `seed` (None: the run's first) with its `best` or its last parameters."""
        trainer, exported = self.trained
        return policy(self.run, trainer, exported, seed, best=best)


def train(
    run: Run,
    out: Path | None,
    *,
    display: Display | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    keep_checkpoints: int | None = checkpoint.KEEP,
    step_seconds: float = STEP_SECONDS,
    pictures: bool = True,
    on_nonfinite: OnNonFinite = "stop",
    log: str | Iterable[str] = DEFAULT,
    callbacks: Sequence[Callback] = (),
    make_env: MakeEnv | None = None,
    source: warm_start.Source | None = None,
) -> Result:
    """Carry out `run` from its beginning and write its records, checkpoints and results to the
    folder `out`.

    A checkpoint is saved about every `checkpoint_seconds`, and the newest `keep_checkpoints` are
    kept (None: all). Without a folder nothing is written; without `pictures` no curves and no
    replay are drawn. The loggers `log` receive the records too. A host environment that needs
    longer than `step_seconds` for a step counts as hung. With `on_nonfinite` "drop-seed" the run
    continues without a seed in which a number is not finite. `make_env` makes the environment if
    its id is that of an object. `source` has the parameters of `run.warm_start`. Raises `UserError`
    if `out` is in use or cannot be written, or if a number is not finite; `Interrupted` after
    Ctrl-C.
    """
    exit_in_worker()
    if out is not None:
        refuse_used(out)
    display = display or Silent()
    loggers = check_loggers(log)
    if out is None and loggers not in ((), DEFAULT):
        raise UserError(
            f"log = {','.join(loggers)}: a run without a folder has no loggers; name one by out"
        )
    options = RunOptions(
        display, checkpoint_seconds, keep_checkpoints, pictures, on_nonfinite, loggers, callbacks
    )
    env, trainer = build(run, step_seconds, display.say, make_env)
    plan = plan_evaluations(run, env)
    check_footprint(run, trainer.footprint(plan.absolute), folder=out is not None)
    point = None if source is None else warm_start.begin(run, trainer, source)
    if out is None:
        return _execute(run, env, trainer, None, point, options, make_env)
    folder = Folder.create(out, run, env.spec, [str(device) for device in jax.devices()], plan)
    try:
        if point is not None:
            folder.rewind(0)
            resume_point.save(folder, run, point, keep=None)
        return _execute(run, env, trainer, folder, point, options, make_env)
    finally:
        folder.unlock()


def resume(
    out: Path,
    *,
    steps: int | None = None,
    trust: Trust = (),
    display: Display | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    keep_checkpoints: int | None = checkpoint.KEEP,
    step_seconds: float = STEP_SECONDS,
    pictures: bool = True,
    on_nonfinite: OnNonFinite = "stop",
    log: str | Iterable[str] = DEFAULT,
    callbacks: Sequence[Callback] = (),
    make_env: MakeEnv | None = None,
) -> Result:
    """Continue the run in `out`, so that it ends as if it had never been interrupted, or extend it
    to `steps` in all, which its schedules then follow.

    Host environments cannot be restored and begin new episodes. Of a finished run only missing
    pictures are drawn, and a dropped seed stays dropped. The display is told of damaged files, and
    of versions other than those that the run began with. Raises `UserError` if `out` holds no run,
    if its environment is code that is not in `trust` or has changed, if `metrics.jsonl` or all
    checkpoints are damaged, if `steps` are not more than it has, or if a number is not finite;
    `Interrupted` after Ctrl-C.
    """
    exit_in_worker()
    display = display or Silent()
    loggers = check_loggers(log)
    options = RunOptions(
        display, checkpoint_seconds, keep_checkpoints, pictures, on_nonfinite, loggers, callbacks
    )
    folder = Folder.open(out)
    run = folder.run(trust if make_env is None else None)
    folder.lock()
    try:
        if versions := folder.describe_versions():
            display.say(versions)
        extended = None if steps is None else run.extended(steps)
        if folder.finished and extended is None:
            return _finished(folder, run, options, make_env)
        run = extended or run
        env, trainer = build(run, step_seconds, display.say, make_env)
        check_footprint(run, trainer.footprint(plan_evaluations(run, env).absolute), folder=True)
        folder.check_environment(env.spec)
        if extended is not None:
            folder.extend(run)
            display.say(
                f"extended from {run.extended_from[-1]:,} to {steps:,} steps; schedules of "
                "settings follow the new number"
            )
        point = resume_point.load_newest(folder, run, trainer.template(), display.say)
        if point is None and run.warm_start is not None:
            raise UserError(f"{out}: has no checkpoint to go on from; train again with --from")
        if point is not None and isinstance(env, HostEnv):
            display.say(f"{run.env}: the learner resumes exactly, the environments in new episodes")
        return _execute(run, env, trainer, folder, point, options, make_env)
    finally:
        folder.unlock()


def load(
    out: Path,
    *,
    trust: Trust = (),
    say: Callable[[str], None] = lambda text: None,
    make_env: MakeEnv | None = None,
) -> tuple[Run, Env | HostEnv, AnyTrainer, Any]:
    """The run in `out`, its environment, its trainer, and the exported states of its newest
    readable checkpoint.

    `say` is told if the run has gone on after that checkpoint, and of other versions. `make_env`
    makes the environment instead of its id. Raises `UserError` if there is no run or no readable
    checkpoint, or if the environment is code that is not in `trust`, or differs from the folder's.
    """
    folder = Folder.open(out)
    run = folder.run(trust if make_env is None else None)
    env, trainer = build(run.replace(data_parallel=1), make_env=make_env)
    if make_env is not None:
        folder.check_environment(env.spec)
    if versions := folder.describe_versions():
        say(versions)
    point = resume_point.load_newest(
        folder, run, trainer.template(), say, doing="using", with_metrics=False
    )
    if point is None:
        raise UserError(f"{out}: no checkpoint yet; `{resume_command(out)}` restarts the run")
    return run, env, trainer, point.exported


def build(
    run: Run,
    step_seconds: float = STEP_SECONDS,
    say: Callable[[str], None] = lambda text: None,
    make_env: MakeEnv | None = None,
) -> tuple[Env | HostEnv, AnyTrainer]:
    """The environment and the trainer of `run`, before any compilation or worker process."""
    backend.prepare(run.data_parallel)
    factory: Callable[[], Any] = make_env or env_factory(run.env, **run.env_options)
    env = factory()
    check_memory(run, env)
    plan = plan_evaluations(run, env)
    schedule: Any = {"seeds": run.seeds, "steps": run.steps, "eval_episodes": plan.episodes}
    with explain_out_of_memory():
        if not isinstance(env, HostEnv):
            return env, Trainer(env, run.config, **schedule, data_parallel=run.data_parallel)
        if run.data_parallel > 1:
            raise UserError(
                f"data_parallel = {run.data_parallel}: is for environments in JAX, and {run.env} "
                "runs in worker processes, on all cores; leave it out"
            )
        workers: Any = {"workers": machine.cores(), "step_seconds": step_seconds, "say": say}
        return env, host.Trainer(env, factory, run.config, **schedule, **workers)


def policy(run: Run, trainer: AnyTrainer, exported: Any, seed: int | None, *, best: bool) -> Any:
    """The policy of `seed` (None: the run's first) in exported states."""
    if seed is None:
        return trainer.actor(exported, 0, best=best)
    if seed not in run.seeds:
        known = ", ".join(map(str, run.seeds))
        raise UserError(f"seed {seed} is not among the run's seeds: {known}")
    return trainer.actor(exported, run.seeds.index(seed), best=best)


def _execute(
    run: Run,
    env: Env | HostEnv,
    trainer: AnyTrainer,
    folder: Folder | None,
    point: ResumePoint | None,
    options: RunOptions,
    make_env: MakeEnv | None,
) -> Result:
    loop = RunLoop(run, env, trainer, folder, point, options)
    summary, exported = loop.execute()
    out = None if folder is None else folder.path
    arrays = jax.tree.leaves(exported)
    result = Result(run, loop.records, summary or {}, out, arrays, make_env)
    result.trained = trainer, exported
    return result


def _finished(folder: Folder, run: Run, options: RunOptions, make_env: MakeEnv | None) -> Result:
    """The result of a finished run, whose missing pictures are drawn if wanted."""
    say = options.display.say
    resume_point.check_finished(folder, run, say)
    summary, records = folder.summary(), folder.records()
    if options.pictures and drawing.missing(folder.path):
        say(f"{folder.path}: finished; drawing the missing pictures")
        again = partial(load, folder.path, trust=(run.env,), make_env=make_env)
        drawing.draw_missing(folder.path, run, summary, again, say)
    else:
        say(f"{folder.path}: finished, nothing to do")
    return Result(run, records, summary, folder.path, make_env=make_env)
