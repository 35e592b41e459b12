"""The interval loop of a run: train, evaluate, write the records, save a checkpoint.

The order lets a run survive a kill at any moment: an interval's records become durable first, then
its checkpoint. A resumed run cuts the records back to its checkpoint and continues from there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from perla.envs.protocol import Env, HostEnv
from perla.errors import UserError
from perla.files import write_atomic
from perla.loops.nonfinite import NonFinite
from perla.loops.protocol import AnyTrainer
from perla.runs import checkpoint, replay, resume_point
from perla.runs.interrupt import Interrupted, listening
from perla.runs.memory import explain_out_of_memory
from perla.runs.resume_point import ResumePoint
from perla.runs.sinks import Display
from perla.runs.spec import OnNonFinite, Run, schedule, steps_per_update
from perla.runs.store import Folder, Record, clean, marl_eval, summarise
from perla.runs.tensorboard import TensorBoard


class RunOptions(NamedTuple):
    """Options that change none of a run's numbers."""

    display: Display
    checkpoint_seconds: float
    """The shortest time between two checkpoints."""
    pictures: bool
    """Draw the curves and a replay at the end."""
    on_nonfinite: OnNonFinite


class Interval(NamedTuple):
    """Training up to an evaluation, and the evaluation."""

    states: Any
    """The states of all seeds."""
    records: list[Record]
    """The evaluation of every seed without a fault."""
    seconds: float
    """Seconds spent since the run's beginning."""
    faults: dict[int, NonFinite]
    """The seeds with a number that is not finite, and the first such number."""


class RunLoop:
    """One run from its beginning, or from a `point`, to its end. Without a folder nothing is
    written."""

    def __init__(
        self,
        run: Run,
        env: Env | HostEnv,
        trainer: AnyTrainer,
        folder: Folder | None,
        point: ResumePoint | None,
        options: RunOptions,
    ) -> None:
        self.run, self.env, self.trainer, self.folder = run, env, trainer, folder
        self.options, self.say = options, options.display.say
        self.schedule = schedule(run.steps, run.num_evaluations, steps_per_update(run, env))
        self.point = point
        self.evaluation = -1 if point is None else point.evaluation
        """The number of the last evaluation before this process."""
        self.seconds = 0.0 if point is None else point.seconds
        self.compile_seconds = 0.0 if point is None else point.compile_seconds
        self.records = [] if folder is None else folder.rewind(self.evaluation)
        self.dropped: dict[int, NonFinite] = {}
        """The seeds that were dropped, and their faults."""
        self.saved_at = -math.inf
        """The time of the last checkpoint of this process."""

    def execute(self) -> tuple[dict[str, Any], Any]:
        """Carry the run out to its end. Returns its summary and the exported states of all seeds.

        Raises `UserError` if a number is not finite and the run has to stop, `Interrupted` after
        Ctrl-C.
        """
        display = self.options.display
        step = 0 if self.point is None else self.schedule[self.evaluation]
        sinks = [display.consume]
        if self.folder is not None:
            board = TensorBoard(self.folder.path, purge_step=step + 1 if self.point else 0)
            sinks = [self.folder.append, board.consume, display.consume]
        display.begin(self.run, step)
        try:
            with explain_out_of_memory(), self._listening() as requested_signal:
                states = self._start()
                for interval in self._intervals(states):
                    states = interval.states
                    self._drop(interval.faults)
                    for consume in sinks:
                        consume(interval.records)
                    self.records += interval.records
                    self._checkpoint(interval, requested_signal())
                summary, exported = self._finish(states)
            display.finish(summary)
        finally:
            self.trainer.close()
            display.close()
        return summary, exported

    def _start(self) -> Any:
        """Compile, and return the states to train from."""
        began = time.perf_counter()
        self.trainer.compile()
        self.compile_seconds += time.perf_counter() - began
        point = self.point
        states = self.trainer.init() if point is None else self.trainer.restore(point.exported)
        self.dropped = self._faults(states)
        for seed, fault in self.dropped.items():
            self.say(f"seed {seed} stays dropped: {fault}")
        return states

    def _intervals(self, states: Any) -> Iterator[Interval]:
        """Train from `states` on, one interval for each evaluation that is due."""
        seconds, last = self.seconds, self.evaluation
        steps = sum(record["step"] for record in self.records if record["evaluation"] == last)
        for evaluation in range(last + 1, len(self.schedule)):
            began = time.perf_counter()
            states, rows = self.trainer.advance(states, self.schedule[evaluation])
            duration = time.perf_counter() - began
            seconds += duration
            faults = self._faults(states)
            metrics = {
                seed: row
                for seed, row in zip(self.run.seeds, rows, strict=True)
                if seed not in faults
            }
            steps_before, steps = steps, sum(int(row["step"]) for row in metrics.values())
            clocks: Record = {"wall_seconds": seconds}
            if steps > steps_before:
                clocks["steps_per_second"] = (steps - steps_before) / duration
            records = [
                clean(
                    {"seed": seed, "evaluation": evaluation, "step": int(row["step"])}
                    | clocks
                    | {name: value for name, value in row.items() if name != "step"}
                )
                for seed, row in metrics.items()
            ]
            yield Interval(states, records, seconds, faults)

    def _checkpoint(self, interval: Interval, signum: int | None) -> None:
        """Save a checkpoint if one is due; raise `Interrupted` if a signal asked for it."""
        if self.folder is None:
            return
        evaluation = interval.records[0]["evaluation"]
        waited = time.perf_counter() - self.saved_at >= self.options.checkpoint_seconds
        if waited or signum or evaluation == len(self.schedule) - 1:
            exported = self.trainer.export(interval.states)
            point = ResumePoint(exported, evaluation, interval.seconds, self.compile_seconds)
            resume_point.save(self.folder, self.run, self.schedule[evaluation], point)
            self.saved_at = time.perf_counter()
        if signum:
            raise Interrupted(self.folder.path, signum)

    def _finish(self, states: Any) -> tuple[dict[str, Any], Any]:
        """Evaluate the best parameters, and write the summary and the pictures."""
        run, folder = self.run, self.folder
        absolute = [clean(row) for row in self.trainer.absolute(states, run.absolute_episodes)]
        self._drop(_without_return(run, absolute) | self.dropped)
        exported = self.trainer.export(states)
        summary = summarise(
            run,
            self.records,
            absolute,
            dropped={seed: str(fault) for seed, fault in self.dropped.items()},
            compile_seconds=self.compile_seconds,
            flops_per_step=self.trainer.work_per_step().flops,
        )
        if folder is not None:
            folder.write_marl_eval(marl_eval(run, self.records, absolute, dropped=self.dropped))
            folder.write_summary(summary)
            if self.options.pictures:
                self.say("drawing curves.png and replay.gif")
                self._draw(folder, exported, [row.get("return") for row in absolute])
        return summary, exported

    def _draw(self, folder: Folder, exported: Any, returns: list[float | None]) -> None:
        """Draw the curves, and an episode of the best seed's best policy if it can be rendered."""
        from perla.analysis import figures  # Slow to import, and needed only here.

        write_atomic(folder.path / "curves.png", figures.curves([folder.path]))
        scores = [-math.inf if value is None else value for value in returns]
        actor = self.trainer.actor(exported, scores.index(max(scores)), best=True)
        try:
            frames = replay.film(self.env, actor, seed=0, greedy=True)
        except UserError as error:
            self.say(f"no replay.gif: {error}")
            return
        write_atomic(folder.path / "replay.gif", replay.gif(frames))

    # Seeds with a fault.

    def _faults(self, states: Any) -> dict[int, NonFinite]:
        """The seeds in which a number is not finite, and the first such number."""
        faults = zip(self.run.seeds, self.trainer.faults(states), strict=True)
        return {seed: fault for seed, fault in faults if fault is not None}

    def _drop(self, faults: dict[int, NonFinite]) -> None:
        """Drop the seeds with `faults`, which include those dropped before.

        Raises `UserError` for the first new one if the run has to stop or no seed is left.
        """
        seeds = len(self.run.seeds)
        left = seeds - len(faults)
        for seed, fault in faults.items():
            if seed in self.dropped:
                continue
            if self.options.on_nonfinite == "stop" or not left:
                raise UserError(f"seed {seed}: {fault}{self._advice(left)}")
            self.say(f"seed {seed}: {fault}; it is dropped, {left} of {seeds} seeds continue")
        self.dropped = faults

    def _advice(self, left: int) -> str:
        """The advice on how to continue after a fault if `left` seeds have none."""
        paths = checkpoint.newest_first(self.folder.checkpoints) if self.folder is not None else []
        last = f"; the last finite checkpoint is {paths[0]}" if paths else ""
        drop = "; --on-nonfinite drop-seed continues with the other seeds" if left else ""
        return last + drop

    @contextmanager
    def _listening(self) -> Iterator[Callable[[], int | None]]:
        """A function that returns the signal that asked the run to stop, or None."""
        if self.folder is None:  # Nothing could be resumed, so Ctrl-C ends the process as usual.
            yield lambda: None
            return
        with listening(self.say, self.options.display.close) as requests:
            yield lambda: requests.signum


def _without_return(run: Run, absolute: Sequence[Mapping[str, Any]]) -> dict[int, NonFinite]:
    """The seeds whose best parameters have no finite return."""
    return {
        seed: NonFinite("the return of the absolute episodes", None, run.steps, math.inf)
        for seed, row in zip(run.seeds, absolute, strict=True)
        if row.get("return") is None
    }
