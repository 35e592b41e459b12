"""Carrying a run out: a loop that yields intervals, and those who consume them.

The order is what makes a run survive any moment: an interval's metrics become durable first, its
checkpoint afterwards. Whoever resumes cuts the metrics back to the checkpoint and goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from perla import machine
from perla.envs.processes.pool import STEP_SECONDS
from perla.envs.protocol import Env, HostEnv
from perla.envs.registry import Trust, env_factory
from perla.errors import UserError
from perla.files import write_atomic
from perla.flops import Work
from perla.loops import host
from perla.loops.anakin import Trainer
from perla.loops.evaluate import Episodes
from perla.loops.nonfinite import NonFinite
from perla.methods.offpolicy import OffPolicy
from perla.runs import backend, checkpoint, replay
from perla.runs.interrupt import Interrupted, listening
from perla.runs.sinks import Display, Silent, TensorBoard
from perla.runs.spec import OnNonFinite, Run, schedule
from perla.runs.store import Folder, Record, clean, marl_eval, refuse_used, summarise

CHECKPOINT_SECONDS = 10.0
"""The least time between two checkpoints. They cost time, and change no number."""


@runtime_checkable
class Loop(Protocol):
    """What carries the learning out: `perla.loops.anakin.Trainer` in worlds of JAX,
    `perla.loops.host.Trainer` in others.

    `states` holds one entry for each seed, and nobody but the loop looks inside.
    """

    def compile(self) -> None:
        """Compile, so that it need not happen later."""
        ...

    def work_per_step(self) -> Work:
        """What training does for each environment step."""
        ...

    def init(self) -> Any:
        """The states before any training."""
        ...

    def advance(self, states: Any, until: int, /) -> tuple[Any, list[dict[str, float]]]:
        """Train every seed until it has made `until` steps, then evaluate it.

        Returns the new states and the metrics of each seed, among them `step` and `return`.
        """
        ...

    def faults(self, states: Any, /) -> list[NonFinite | None]:
        """The first number of each seed that was not finite, None where all are. Such a seed has
        stood still since, and its metrics say nothing."""
        ...

    def absolute(self, states: Any, episodes: int, /) -> list[dict[str, float]]:
        """The best parameters of every seed, evaluated over `episodes` episodes."""
        ...

    def export(self, states: Any, /) -> Any:
        """`states` as plain arrays, complete to the bit."""
        ...

    def restore(self, exported: Any, /) -> Any:
        """The inverse of `export`."""
        ...

    def template(self) -> Any:
        """The shapes and types of what `export` returns, without computing any."""
        ...

    def actor(self, exported: Any, index: int, /, *, best: bool) -> Any:
        """The best policy so far of the seed at `index`, or its present one."""
        ...

    def play(self, actor: Any, key: Any, greedy: Any, /) -> Episodes:
        """An episode of a policy for each entry of `greedy`."""
        ...

    def close(self) -> None:
        """Let go of everything that is held; nothing follows."""
        ...


class Progress(NamedTuple):
    """How far a run is: what a checkpoint holds."""

    exported: Any
    """The states of every seed, as plain arrays."""
    evaluation: int
    """The number of the last evaluation."""
    seconds: float
    """Seconds spent, without compilation."""
    compile_seconds: float
    """Seconds spent on compilation."""


class Conduct(NamedTuple):
    """How a run is carried out, which changes none of its numbers."""

    display: Display
    checkpoint_seconds: float
    pictures: bool
    on_nonfinite: OnNonFinite


class Interval(NamedTuple):
    """What the loop yields: the states after some updates, and their evaluation."""

    states: Any
    records: list[Record]
    """Of the seeds whose numbers are finite."""
    seconds: float
    """Seconds spent since the run's beginning."""
    dropped: dict[int, NonFinite]
    """The other seeds, and the first number of each that is not."""


@dataclass
class Result:
    """A finished run."""

    run: Run
    records: list[Record]
    """Every evaluation of every seed, in order: the lines of `metrics.jsonl`."""
    summary: dict[str, Any]
    """Final, best and absolute metrics: what `summary.json` holds."""
    out: Path | None
    """The run folder, if there is one."""
    source: Callable[[], tuple[Loop, Any]] = field(repr=False)
    """Where the loop and its final, exported states come from."""

    @property
    def dropped(self) -> dict[int, str]:
        """The seeds that were left out, each with its first number that was not finite."""
        return {entry["seed"]: entry["reason"] for entry in self.summary.get("dropped", ())}

    @cached_property
    def _trained(self) -> tuple[Loop, Any]:
        return self.source()

    def actor(self, seed: int | None = None, *, best: bool = True) -> Any:
        """The policy of `seed` (None: the run's first): its `best` parameters, or its last."""
        trainer, exported = self._trained
        return policy(self.run, trainer, exported, seed, best=best)


def train(
    run: Run,
    out: Path | None,
    *,
    display: Display | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    step_seconds: float = STEP_SECONDS,
    pictures: bool = True,
    on_nonfinite: OnNonFinite = "stop",
) -> Result:
    """Carry `run` out from its beginning and leave everything about it in the folder `out`.

    Without a folder nothing is written; without `pictures` no curves and no replay are drawn. A
    world of the host that takes longer than `step_seconds` over a step has hung. With
    `on_nonfinite` "drop-seed" a seed in which a number is not finite is left out from then on.
    Raises `UserError` if `out` is in use or cannot be written, and where a number is not finite;
    `Interrupted` after Ctrl-C.
    """
    if out is not None:
        refuse_used(out)
    display = display or Silent()
    conduct = Conduct(display, checkpoint_seconds, pictures, on_nonfinite)
    env, trainer = build(run, step_seconds, display.say)
    if out is None:
        return _carry_out(run, env, trainer, None, None, conduct)
    folder = Folder.create(out, run, env.spec, [str(device) for device in jax.devices()])
    try:
        return _carry_out(run, env, trainer, folder, None, conduct)
    finally:
        folder.unlock()


def resume(
    out: Path,
    *,
    trust: Trust = (),
    display: Display | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    step_seconds: float = STEP_SECONDS,
    pictures: bool = True,
    on_nonfinite: OnNonFinite = "stop",
) -> Result:
    """Go on with the run in `out`, so that it ends as if it had never been interrupted.

    Worlds of the host cannot be taken up where they were and begin fresh episodes.
    A finished run is left as it is, and a seed that was dropped stays out. Raises `UserError` if
    there is no run in `out`, its world is code and not one to `trust`, or has changed, or its
    checkpoints are of no use, and where a number is not finite; `Interrupted` after Ctrl-C.
    """
    display = display or Silent()
    conduct = Conduct(display, checkpoint_seconds, pictures, on_nonfinite)
    folder = Folder.open(out)
    run = folder.run(trust)
    folder.lock()
    try:
        if folder.finished:
            summary, records = folder.summary(), folder.records()
            display.say(f"{out}: finished, nothing to do")
            return Result(run, records, summary, out, lambda: load(out, trust=trust)[2:])
        env, trainer = build(run, step_seconds, display.say)
        folder.check_environment(env.spec)
        start = newest(folder, run, trainer, display.say)
        if start is not None and isinstance(env, HostEnv):
            display.say(f"{run.env}: the learner goes on exactly, the worlds in fresh episodes")
        return _carry_out(run, env, trainer, folder, start, conduct)
    finally:
        folder.unlock()


def load(out: Path, *, trust: Trust = ()) -> tuple[Run, Env | HostEnv, Loop, Any]:
    """The run in `out`, its world, its loop, and the exported states of its newest checkpoint.

    Raises `UserError` if there is no run or no readable checkpoint, or its world is code and not
    one to `trust`.
    """
    folder = Folder.open(out)
    run = folder.run(trust)
    env, trainer = build(run)
    progress = newest(folder, run, trainer, lambda text: None)
    if progress is None:
        raise UserError(f"{out}: no checkpoint yet; `perla resume {out}` begins the run again")
    return run, env, trainer, progress.exported


def build(
    run: Run,
    step_seconds: float = STEP_SECONDS,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Env | HostEnv, Loop]:
    """The world and the trainer of `run`; nothing is compiled and no process started yet."""
    backend.prepare()
    make = env_factory(run.env, **run.env_options)
    env = make()
    _check_memory(run, env)
    lasts: Any = {"seeds": run.seeds, "steps": run.steps, "eval_episodes": run.eval_episodes}
    with _memory_explained():
        if not isinstance(env, HostEnv):
            return env, Trainer(env, run.config, **lasts)
        conduct: Any = {"workers": machine.cores(), "step_seconds": step_seconds, "say": say}
        return env, host.Trainer(env, make, run.config, **lasts, **conduct)


def newest(folder: Folder, run: Run, trainer: Loop, say: Callable[[str], None]) -> Progress | None:
    """The newest checkpoint that can be read, None if the run has none yet.

    Where one is damaged, `say` why and take the one before. Raises the newest one's `UserError`
    if none is left.
    """
    errors = []
    template = trainer.template()
    for path in checkpoint.newest_first(folder.checkpoints):
        try:
            tree, meta = checkpoint.load(path, template)
            if meta.run != run.identity:
                raise UserError(
                    f"{path}: checkpoint of another configuration than "
                    f"{folder.path / 'config.json'}"
                )
        except UserError as error:
            errors.append(error)
            continue
        for damage in errors:
            say(f"{damage}; going on from {path.name}")
        return Progress(tree, meta.evaluation, meta.wall_seconds, meta.compile_seconds)
    if errors:
        raise errors[0]
    return None


def intervals(
    trainer: Loop,
    run: Run,
    states: Any,
    due: Mapping[int, int],
    *,
    steps: int = 0,
    seconds: float = 0.0,
) -> Iterator[Interval]:
    """Train from `states` on, and yield after each evaluation that is `due`: number → step.

    So far all seeds together have made `steps` steps in `seconds` seconds.
    """
    for evaluation, until in due.items():
        began = time.perf_counter()
        states, rows = trainer.advance(states, until)
        took = time.perf_counter() - began
        seconds += took
        dropped = _dropped(run, trainer.faults(states))
        measured = {
            seed: row for seed, row in zip(run.seeds, rows, strict=True) if seed not in dropped
        }
        reached = sum(int(metrics["step"]) for metrics in measured.values())
        counters: Record = {"wall_seconds": seconds}
        if reached > steps:
            counters["steps_per_second"] = (reached - steps) / took
        records = [
            clean(
                {"seed": seed, "evaluation": evaluation, "step": int(metrics["step"])}
                | counters
                | {name: value for name, value in metrics.items() if name != "step"}
            )
            for seed, metrics in measured.items()
        ]
        yield Interval(states, records, seconds, dropped)
        steps = reached


def policy(run: Run, trainer: Loop, exported: Any, seed: int | None, *, best: bool) -> Any:
    """The policy of `seed` (None: the first) in exported states."""
    if seed is None:
        return trainer.actor(exported, 0, best=best)
    if seed not in run.seeds:
        known = ", ".join(map(str, run.seeds))
        raise UserError(f"seed {seed} is not among the run's seeds: {known}")
    return trainer.actor(exported, run.seeds.index(seed), best=best)


def _carry_out(
    run: Run,
    env: Env | HostEnv,
    trainer: Loop,
    folder: Folder | None,
    start: Progress | None,
    conduct: Conduct,
) -> Result:
    display = conduct.display
    points = schedule(run.steps, run.num_evaluations, steps_per_update(run, env))
    done = start.evaluation if start is not None else -1
    due = {number: step for number, step in enumerate(points) if number > done}
    records = folder.rewind(done) if folder is not None else []
    steps = sum(record["step"] for record in records if record["evaluation"] == done)
    sinks = [display.consume]
    if folder is not None:
        board = TensorBoard(folder.path, purge_step=points[done] + 1 if start else 0)
        sinks = [folder.append, board.consume, display.consume]
    display.begin(run, points[done] if start else 0)
    try:
        with _memory_explained(), _listening(folder, display) as interrupted:
            began = time.perf_counter()
            trainer.compile()
            compile_seconds = time.perf_counter() - began
            if start is not None:
                compile_seconds += start.compile_seconds
            states = trainer.init() if start is None else trainer.restore(start.exported)
            seconds = 0.0 if start is None else start.seconds
            saved_at = -float("inf")
            dropped = _dropped(run, trainer.faults(states))
            for seed, fault in dropped.items():
                display.say(f"seed {seed} stays out: {fault}")
            for interval in intervals(trainer, run, states, due, steps=steps, seconds=seconds):
                states = interval.states
                dropped = _drop(dropped, interval.dropped, run, folder, conduct)
                for consume in sinks:
                    consume(interval.records)
                records += interval.records
                if folder is None:
                    continue
                evaluation, stop = interval.records[0]["evaluation"], interrupted()
                waited = time.perf_counter() - saved_at >= conduct.checkpoint_seconds
                if waited or stop or evaluation == len(points) - 1:
                    exported = trainer.export(states)
                    progress = Progress(exported, evaluation, interval.seconds, compile_seconds)
                    _save(folder, run, points[evaluation], progress)
                    saved_at = time.perf_counter()
                if stop:
                    raise Interrupted(folder.path, stop)
            absolute = [
                clean(metrics) for metrics in trainer.absolute(states, run.absolute_episodes)
            ]
            dropped = _drop(dropped, _unscored(run, absolute) | dropped, run, folder, conduct)
            exported = trainer.export(states)
            summary = summarise(
                run,
                records,
                absolute,
                dropped={seed: str(fault) for seed, fault in dropped.items()},
                compile_seconds=compile_seconds,
                flops_per_step=trainer.work_per_step().flops,
            )
            if folder is not None:
                folder.write_marl_eval(marl_eval(run, records, absolute, dropped=dropped))
                folder.write_summary(summary)
                if conduct.pictures:
                    display.say("drawing curves.png and replay.gif")
                    _draw(run, env, trainer, exported, folder, absolute, display.say)
        display.finish(summary)
    finally:
        trainer.close()
        display.close()
    out = folder.path if folder is not None else None
    return Result(run, records, summary, out, lambda: (trainer, exported))


def steps_per_update(run: Run, env: Env | HostEnv) -> int:
    """The most steps that an update takes, summed over copies."""
    return run.config.num_envs * run.config.length(env.spec.limit)


def _dropped(run: Run, faults: Sequence[NonFinite | None]) -> dict[int, NonFinite]:
    """The seeds in which a number is not finite."""
    found = zip(run.seeds, faults, strict=True)
    return {seed: fault for seed, fault in found if fault is not None}


def _unscored(run: Run, absolute: Sequence[Mapping[str, Any]]) -> dict[int, NonFinite]:
    """The seeds whose best parameters have no return."""
    return {
        seed: NonFinite("the return of the absolute episodes", None, run.steps, math.inf)
        for seed, metrics in zip(run.seeds, absolute, strict=True)
        if metrics.get("return") is None
    }


def _drop(
    known: Mapping[int, NonFinite],
    found: dict[int, NonFinite],
    run: Run,
    folder: Folder | None,
    conduct: Conduct,
) -> dict[int, NonFinite]:
    """The seeds that are left out, after more have been `found` than were `known`.

    Raises `UserError` for the first of them where the run is to stop, or no seed is left.
    """
    left = len(run.seeds) - len(found)
    for seed in (seed for seed in found if seed not in known):
        news = f"seed {seed}: {found[seed]}"
        if conduct.on_nonfinite == "drop-seed" and left:
            conduct.display.say(f"{news}; it is dropped, {left} of {len(run.seeds)} seeds go on")
            continue
        kept = checkpoint.newest_first(folder.checkpoints) if folder is not None else []
        finite = f"; the last finite checkpoint is {kept[0]}" if kept else ""
        others = "; --on-nonfinite drop-seed goes on with the other seeds" if left else ""
        raise UserError(f"{news}{finite}{others}")
    return found


def _save(folder: Folder, run: Run, step: int, progress: Progress) -> None:
    meta = checkpoint.Meta(
        run=run.identity,
        evaluation=progress.evaluation,
        step=step,
        wall_seconds=progress.seconds,
        compile_seconds=progress.compile_seconds,
    )
    path = checkpoint.path_of(folder.checkpoints, step)
    checkpoint.save(path, progress.exported, meta)
    checkpoint.prune(folder.checkpoints)


def _draw(
    run: Run,
    env: Env | HostEnv,
    trainer: Loop,
    exported: Any,
    folder: Folder,
    absolute: list[Any],
    say: Callable[[str], None],
) -> None:
    """The curves of the run, and an episode of the best seed's best policy, if it can be drawn."""
    from perla.analysis import figures  # Slow to import, and needed only here.

    write_atomic(folder.path / "curves.png", figures.curves([folder.path]))
    scores = [metrics.get("return") for metrics in absolute]
    best = max(range(len(scores)), key=lambda i: -math.inf if scores[i] is None else scores[i])
    try:
        frames = replay.film(env, trainer.actor(exported, best, best=True), seed=0, greedy=True)
    except UserError as error:
        say(f"no replay.gif: {error}")
        return
    write_atomic(folder.path / "replay.gif", replay.gif(frames))


@contextmanager
def _listening(folder: Folder | None, display: Display) -> Iterator[Callable[[], int | None]]:
    if folder is None:  # Nothing could be continued: Ctrl-C is what it always is.
        yield lambda: None
        return
    with listening(display.say, display.close) as requests:
        yield lambda: requests.signum


@contextmanager
def _memory_explained() -> Iterator[None]:
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
            raise UserError(
                f"out of memory; a smaller num_envs, rollout_length or number of seeds need less ({text})"
            ) from None
        raise


def _check_memory(run: Run, env: Env | HostEnv) -> None:
    """Refuse what cannot fit by orders of magnitude, before anything tries."""
    config, spec = run.config, env.spec
    seen = 4 * spec.agents * spec.obs
    needs = {
        f"num_envs = {config.num_envs} and rollout_length = {config.rollout_length}": steps_per_update(
            run, env
        )
        * seen,
        f"hidden_size = {config.hidden_size} and num_layers = {config.num_layers}": (
            4 * config.hidden_size * (spec.obs + config.hidden_size * (config.num_layers - 1))
        ),
        f"eval_episodes = {run.eval_episodes}": run.eval_episodes * seen,
        f"absolute_episodes = {run.absolute_episodes}": run.absolute_episodes * seen,
    }
    if isinstance(config, OffPolicy):
        needs[f"buffer_size = {config.buffer_size}"] = (
            config.buffer_size * config.length(spec.limit) * seen
        )
    have = machine.memory()
    for what, need in needs.items():
        if need > have:
            raise UserError(
                f"{what}: needs {need / 2**30:,.0f} GiB at least, and this machine has "
                f"{have / 2**30:,.0f} GiB"
            )
    if run.steps + steps_per_update(run, env) > 2**31 - 1:
        raise UserError(f"steps = {run.steps}: with updates of this size, more than can be counted")
