"""The interval loop of a run: train, evaluate, write the records, save a checkpoint.

The order lets a run survive a kill at any moment: an interval's records become durable first, then
its checkpoint. A resumed run cuts the records back to its checkpoint and continues from there. An
interval is trained in pieces, after each of which a checkpoint may be saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from perla.envs.protocol import Env, HostEnv
from perla.errors import UserError, resume_command
from perla.loops.nonfinite import NonFinite
from perla.loops.protocol import AnyTrainer
from perla.loops.seeds import MAX_UPDATES
from perla.runs import checkpoint, pictures, resume_point
from perla.runs.callbacks import Callback, Progress
from perla.runs.interrupt import Interrupted, Requests, listening
from perla.runs.loggers import DEFAULT, Loggers
from perla.runs.memory import explain_out_of_memory
from perla.runs.resume_point import ResumePoint
from perla.runs.sinks import Display
from perla.runs.spec import OnNonFinite, Run, describe_evaluations, plan_evaluations
from perla.runs.store import Folder, Record, clean, marl_eval, summarise

PIECE_SECONDS = 5.0
"""The longest time, about, for which a piece of an interval is trained and a signal waits."""

BETWEEN_SECONDS = 1.0
"""The shortest time between two checkpoints within an interval."""


class RunOptions(NamedTuple):
    """Options that change none of a run's numbers."""

    display: Display
    checkpoint_seconds: float
    """The time after which a checkpoint is due."""
    keep_checkpoints: int | None
    """The number of checkpoints that are kept; None: all."""
    pictures: bool
    """Draw the curves and a replay at the end."""
    on_nonfinite: OnNonFinite
    log: Sequence[str] = DEFAULT
    """Names of the loggers."""
    callbacks: Sequence[Callback] = ()


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
        self.evaluations = plan_evaluations(run, env)
        self.schedule = self.evaluations.schedule
        self.point = point
        self.evaluation = -1 if point is None else point.evaluation
        """The number of the last evaluation."""
        self.seconds = 0.0 if point is None else point.seconds
        self.compile_seconds = 0.0 if point is None else point.compile_seconds
        kept = [] if folder is None else folder.rewind(0 if point is None else point.lines)
        self.latest = [record for record in kept if record["evaluation"] == self.evaluation]
        """The records of the last evaluation."""
        self.records: list[Record] = []
        """All records: at the end, as a folder holds them until then."""
        self.unusable = () if point is None else point.unusable
        """Checkpoints to be removed once a newer one is saved."""
        self.dropped: dict[int, NonFinite] = {}
        """The seeds that were dropped, and their faults."""
        self.requests = Requests()
        self.progress = Progress(run, None if folder is None else folder.path)
        self.progress.records = self.latest
        self.progress.step = 0 if point is None else point.step
        self.saved_at = -math.inf if point is None else time.perf_counter()
        """The time of the last checkpoint of this process, or of its start from one."""
        self.update_seconds: float | None = None
        """Seconds of an update, None before any was measured."""

    def execute(self) -> tuple[dict[str, Any] | None, Any]:
        """Carry the run out to its end, or until a callback stops it. Returns its summary, None if
        it was stopped, and the exported states of all seeds.

        Raises `UserError` if a number is not finite and the run has to stop, `Interrupted` after
        Ctrl-C.
        """
        display = self.options.display
        sinks, loggers = [display.consume], Loggers()
        if self.folder is not None:
            sinks = [self.folder.append, loggers.consume, display.consume]
        evaluations = describe_evaluations(self.run, self.env)
        display.begin(self.run, evaluations, 0 if self.point is None else self.point.step)
        try:
            if self.folder is not None:
                loggers.open(self.options.log, self.folder, self.run, self.latest)
            with explain_out_of_memory(), self._listening():
                states = self._start()
                self._call("on_start")
                states = self._intervals(states, sinks)
                if self.evaluation < len(self.schedule) - 1:
                    summary, exported = None, self._stop(states)
                else:
                    summary, exported = self._finish(states)
                    loggers.finish(summary)
                    display.finish(summary)
                self.progress.summary = summary
                self._call("on_end")
        finally:
            self.trainer.close()
            display.close()
            loggers.close()
        return summary, exported

    def _intervals(self, states: Any, sinks: Sequence[Callable[[list[Record]], None]]) -> Any:
        """Train, evaluate and record, until the end or until a callback stops the run."""
        for number in range(self.evaluation + 1, len(self.schedule)):
            states = self._train(states, self.schedule[number])
            if self.progress.stopping and self.progress.step < self.schedule[number]:
                return states
            states, records = self._evaluate(states, number)
            for consume in sinks:
                consume(records)
            if self.folder is None:
                self.records += records
            self.latest, self.evaluation = records, number
            self.progress.records = records
            self._call("on_evaluation")
            self._checkpoint(states, self.schedule[number])
            if self.progress.stopping:
                return states
        return states

    def _call(self, event: str) -> None:
        """Call the method `event` of all callbacks."""
        for callback in self.options.callbacks:
            getattr(callback, event)(self.progress)

    def _stop(self, states: Any) -> Any:
        """Leave a run that a callback has stopped. Returns the exported states."""
        folder = self.folder
        goes_on = "" if folder is None else f"; `{resume_command(folder.path)}` continues"
        self.say(f"stopped by a callback after {self.progress.step:,} steps{goes_on}")
        if folder is not None:
            self.records = folder.records()
        return self.trainer.export(states)

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

    def _train(self, states: Any, until: int) -> Any:
        """Train every seed until it has made `until` steps, with checkpoints in between."""
        while True:
            updates = self._updates_of_piece()
            began = time.perf_counter()
            states, step = self.trainer.train(states, until, updates)
            duration = time.perf_counter() - began
            self.seconds += duration
            self.progress.step = step
            if step > 0:
                self._call("on_interval")
            if step == until:  # Perhaps with fewer updates, each of which took longer.
                if self.update_seconds is not None:
                    self.update_seconds = max(self.update_seconds, duration / updates)
                return states
            self.update_seconds = duration / updates
            if self._is_due(BETWEEN_SECONDS):
                self._drop(self._faults(states))
                self._checkpoint(states, step)
            if self.progress.stopping:
                return states

    def _updates_of_piece(self) -> int:
        """The number of updates until a checkpoint is due, or that take `PIECE_SECONDS`."""
        if self.folder is None:
            return MAX_UPDATES
        if self.update_seconds is None:
            return 1
        waited = time.perf_counter() - self.saved_at
        seconds = min(self._due(BETWEEN_SECONDS) - waited, PIECE_SECONDS)
        return max(1, int(min(seconds / max(self.update_seconds, 1e-9), MAX_UPDATES)))

    def _evaluate(self, states: Any, number: int) -> tuple[Any, list[Record]]:
        """Evaluate every seed, for the `number`-th time. Returns its states and records."""
        began = time.perf_counter()
        states, rows = self.trainer.evaluate(states)
        self.seconds += time.perf_counter() - began
        faults = self._faults(states)
        self._drop(faults)
        metrics = {
            seed: row for seed, row in zip(self.run.seeds, rows, strict=True) if seed not in faults
        }
        before = self.latest
        steps = sum(int(row["step"]) for row in metrics.values())
        steps -= sum(int(record["step"]) for record in before)
        clocks: Record = {"wall_seconds": self.seconds}
        if steps > 0:
            since = before[0]["wall_seconds"] if before else 0.0
            clocks["steps_per_second"] = steps / (self.seconds - since)
        records = [
            clean(
                {"seed": seed, "evaluation": number, "step": int(row["step"])}
                | clocks
                | {name: value for name, value in row.items() if name != "step"}
            )
            for seed, row in metrics.items()
        ]
        return states, records

    # Checkpoints.

    def _is_due(self, least: float = 0.0) -> bool:
        """True if a signal or a callback asks for a checkpoint, or if the last one is old enough:
        at least `least` seconds."""
        waited = time.perf_counter() - self.saved_at
        asked = self.requests.pending or self.progress.stopping
        return asked or waited >= self._due(least)

    def _due(self, least: float) -> float:
        """The seconds between two checkpoints."""
        return max(self.options.checkpoint_seconds, least)

    def _checkpoint(self, states: Any, step: int) -> None:
        """Save a checkpoint after `step` steps of every seed if one is due; raise `Interrupted` if
        a signal asked to stop."""
        if self.folder is None:
            return
        if self._is_due() or self.evaluation == len(self.schedule) - 1:
            saving = self.requests.take_save()
            exported = self.trainer.export(states)
            clocks = self.seconds, self.compile_seconds
            point = ResumePoint(exported, self.evaluation, step, self.folder.lines, *clocks)
            unusable, self.unusable = self.unusable, ()
            keep = self.options.keep_checkpoints
            resume_point.save(self.folder, self.run, point, keep=keep, unusable=unusable)
            self.saved_at = time.perf_counter()
            if saving:
                self.say(f"saved the checkpoint of step {step:,}")
            self._call("on_checkpoint")
        if self.requests.signum:
            raise Interrupted(self.folder.path, self.requests.signum)

    def _finish(self, states: Any) -> tuple[dict[str, Any], Any]:
        """Evaluate the best parameters, and write the summary and the pictures."""
        run, folder = self.run, self.folder
        absolute = [clean(row) for row in self.trainer.absolute(states, self.evaluations.absolute)]
        self._drop(_without_return(run, absolute) | self.dropped)
        exported = self.trainer.export(states)
        if folder is not None:
            self.records = folder.records()
        summary = summarise(
            run,
            self.records,
            absolute,
            dropped={seed: str(fault) for seed, fault in self.dropped.items()},
            compile_seconds=self.compile_seconds,
            flops_per_step=self.trainer.work_per_step().flops,
        )
        if failed := sum(entry["dropped_episodes"] for entry in summary["seeds"]):
            self.say(f"{failed} episodes were dropped because environments failed")
        if folder is not None:
            folder.write_marl_eval(marl_eval(run, self.records, absolute, dropped=self.dropped))
            folder.write_summary(summary)
            if self.options.pictures:
                self.say(f"drawing {pictures.CURVES} and {pictures.REPLAY}")
                pictures.draw_curves(folder.path, folder.path / pictures.CURVES)
                pictures.draw_replay(
                    folder.path, run, self.env, self.trainer, exported, summary, self.say
                )
        return summary, exported

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
    def _listening(self) -> Iterator[None]:
        """Collect signals in `requests`."""
        if self.folder is None:  # Nothing could be resumed, so Ctrl-C ends the process as usual.
            yield
            return
        with listening(self.say, self.options.display.close, self.requests):
            yield


def _without_return(run: Run, absolute: Sequence[Mapping[str, Any]]) -> dict[int, NonFinite]:
    """The seeds whose best parameters have no finite return."""
    return {
        seed: NonFinite("the return of the absolute episodes", None, run.steps, math.inf)
        for seed, row in zip(run.seeds, absolute, strict=True)
        if row.get("return") is None
    }
