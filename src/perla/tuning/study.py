"""A study: trials of a method's settings on the tuning seeds, in a folder.

`study.json` has the plan, `batches/` a file for each batch of trials, and `trials/` a run folder
for each trial. Settings are written before their runs begin, results after the batch has ended.
Whatever is missing is derived from the run folders, so a study that was killed anywhere goes on.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from perla.analysis.load import STUDY, TRIALS, Curves, is_finished, load
from perla.config import VERSION, Config, Count, check_version, encode, from_json
from perla.errors import UserError, nearest
from perla.files import decode, explained, make_below, read_regular, write_atomic
from perla.methods.method import Method
from perla.methods.settings import override
from perla.runs.spec import Run, Seed, Steps
from perla.runs.store import CLOCKS
from perla.suites.display import Display
from perla.suites.execute import mark_of
from perla.suites.executors import Executor, Stop, Task
from perla.suites.suite import Cell, text
from perla.tuning.search import Pruner, Rule, Search, Trial, ask, best
from perla.tuning.space import Dimension

WAIT_SECONDS = 1.0
"""Seconds between two looks at a trial that another process carries out."""
WARMUP_SHARE = 0.2
"""The share of a trial's steps before which it is not pruned."""

MakeExecutor = Callable[[Stop], Executor]
Say = Callable[[str], None]


class Plan(Config, frozen=True, kw_only=True):
    """Everything that determines the trials of a study, except their number."""

    env: str
    """The environment's id."""
    env_options: dict[str, Any] = msgspec.field(default_factory=dict)
    """Options of the environment."""
    algo: str
    """The method's name."""
    preset: str = "default"
    """The preset's name."""
    config: Method
    """The settings on top of which those of the space are set."""
    space: dict[str, Dimension]
    """The values of the tuned settings."""
    steps: Steps
    """Environment steps of each seed of a trial."""
    tuning_seeds: Annotated[tuple[Seed, ...], Meta(min_length=1, max_length=1024)]
    """Seeds of the trials."""
    num_evaluations: Count | None = None
    """Evaluations of a trial; none: as many as fit."""
    metric: str = "return"
    """The objective: this absolute metric, averaged over the tuning seeds."""
    seed: Seed = 0
    """Seed of the search."""
    search: Search = "tpe"
    """The way in which settings are chosen."""
    pruner: Pruner = "median"
    """The rule that stops bad trials."""
    parallel: Count = 4
    """Trials of a batch, which are chosen together."""

    def run(self, settings: dict[str, Any], seeds: Sequence[int]) -> Run:
        """The run of `settings` with `seeds`. Raises `UserError` for settings that exclude each
        other."""
        return Run(
            env=self.env,
            env_options=self.env_options,
            algo=self.algo,
            preset=self.preset,
            config=override(self.algo, self.config, settings),
            steps=self.steps,
            seeds=tuple(seeds),
            num_evaluations=self.num_evaluations,
        )


class Budget(NamedTuple):
    """The cost of a search."""

    trials: int
    complete: int
    pruned: int
    failed: int
    steps: int
    """Environment steps of all trials and seeds."""
    seconds: float
    """Wall-clock seconds of all trials, which may have run side by side."""


def check_seeds(tuning: Sequence[int], reporting: Sequence[int]) -> None:
    """Raise `UserError` if a seed both chooses settings and reports their results."""
    shared = sorted(set(tuning) & set(reporting))
    if shared:
        seeds = ",".join(map(str, shared[:5])) + ",…" * (len(shared) > 5)
        one = len(shared) == 1
        raise UserError(
            f"seed{'s' * (not one)} {seeds} {'is' if one else 'are'} for tuning and for reporting; "
            "results on seeds that chose the settings are too good: report on others"
        )


def words(settings: dict[str, Any]) -> str:
    """Settings in a line, such as `lr=0.001 hidden_size=64`."""
    return " ".join(f"{n}={text(v)}" for n, v in settings.items()) or "the preset's"


@dataclass
class Study:
    """The study in `folder`. `open_study` makes it."""

    folder: Path
    plan: Plan
    read: dict[Path, tuple[object, Curves | None]] = field(default_factory=dict)
    """Records of running trials, with the stamp of the file that they were read from."""

    # Trials.

    def history(self) -> list[Trial]:
        """All trials, in order. Raises `UserError` if a file is damaged."""
        found: list[Trial] = []
        for path in sorted((self.folder / "batches").glob("*.json")):
            with explained(path):
                found += decode(read_regular(path), list[Trial], source=path)
        if [trial.number for trial in found] != list(range(len(found))):
            raise UserError(f"{self.folder / 'batches'}: damaged (trials are missing)")
        return found

    def search(
        self, trials: int, make_executor: MakeExecutor, display: Callable[[], Display], say: Say
    ) -> list[Trial]:
        """Carry out trials until there are as many as `trials`, and return all.

        Processes that call this with the same folder share the work. Raises `UserError` if every
        trial has failed, or if the metric is none of the environment's.
        """
        plan = self.plan
        while True:
            history = self.history()
            batch = [trial for trial in history if trial.state == "running"]
            if not batch:
                count = min(plan.parallel, trials - len(history))
                if count <= 0:
                    break
                batch = ask(plan.space, history, count, seed=plan.seed, search=plan.search)
                if not self._file(batch[0].batch).exists():
                    self._write(batch)
            earlier = [trial for trial in history if trial.batch < batch[0].batch]
            whole = [trial for trial in history if trial.batch == batch[0].batch] or batch
            ended = self._carry_out(whole, earlier, make_executor, display)
            self._write(ended)
            for trial in ended:
                say(describe(trial, plan.metric))
        if best(history) is None:
            reason = next((trial.reason for trial in history if trial.reason), "all were pruned")
            raise UserError(f"{self.folder}: no trial is complete; the first: {reason}")
        return history

    def budget(self, history: Sequence[Trial]) -> Budget:
        """The cost of the trials."""
        states = [trial.state for trial in history]
        return Budget(
            trials=len(history),
            complete=states.count("complete"),
            pruned=states.count("pruned"),
            failed=states.count("failed"),
            steps=sum(trial.steps for trial in history),
            seconds=sum(trial.seconds for trial in history),
        )

    def trial_folder(self, trial: Trial) -> Path:
        """The run folder of a trial."""
        return self.folder / TRIALS / f"{trial.number:04}"

    # Carrying out.

    def _carry_out(
        self,
        batch: Sequence[Trial],
        earlier: Sequence[Trial],
        make_executor: MakeExecutor,
        display: Callable[[], Display],
    ) -> list[Trial]:
        """Carry out the trials of a batch and return them as they ended."""
        rule = Rule(self.plan.space, earlier, self.plan.pruner)
        ended = {trial.number: trial for trial in batch if trial.state != "running"}
        tasks: dict[Path, tuple[Trial, Cell]] = {}
        make_below(self.folder, Path(TRIALS))
        for trial in batch:
            name = f"trial {trial.number} {words(trial.settings)}"
            try:
                run = self.plan.run(trial.settings, self.plan.tuning_seeds)
            except UserError as error:
                ended[trial.number] = trial.replace(state="failed", reason=str(error))
            else:
                tasks[self.trial_folder(trial)] = trial, Cell(name, trial.settings, run)

        judged: dict[Path, tuple[Curves | None, bool]] = {}

        def stop(task: Task) -> bool:
            curves = self._curves(task.folder)
            if task.folder not in judged or judged[task.folder][0] is not curves:
                judged[task.folder] = curves, self._pruned(task.run, curves, rule) is not None
            return judged[task.folder][1]

        while True:
            for folder, (trial, cell) in tasks.items():
                result = None if trial.number in ended else self._ended(trial, cell, folder, rule)
                if result is not None:
                    ended[trial.number] = result
            left = {f: cell for f, (trial, cell) in tasks.items() if trial.number not in ended}
            if not left:
                return [ended[trial.number] for trial in batch]
            if self._run(left, make_executor(stop), display()):
                time.sleep(WAIT_SECONDS)

    def _run(self, cells: dict[Path, Cell], executor: Executor, display: Display) -> bool:
        """Run `cells` by folder; True if another process has one of them."""
        skipped = False
        display.begin(cells, list(cells))
        try:
            tasks = [Task(cell.run, folder) for folder, cell in cells.items()]
            with closing(executor.carry_out(tasks)) as events:
                for event in events:
                    display.consume(event)
                    skipped |= event.kind == "skipped"
                    if event.kind == "failed":
                        write_atomic(mark_of(event.task.folder), event.text.encode())
        finally:
            display.close()
        return skipped

    # Results.

    def _ended(self, trial: Trial, cell: Cell, folder: Path, rule: Rule) -> Trial | None:
        """The trial with its result; None if its run goes on."""
        curves, reason = self._curves(folder), ""
        pruned = self._pruned(cell.run, curves, rule)
        if os.path.lexists(mark_of(folder)):
            with explained(mark_of(folder)):
                reason = read_regular(mark_of(folder)).decode(errors="replace") or "failed"
        finished = curves is not None and curves.finished
        if not (reason or pruned is not None or finished):
            return None
        if curves is not None:
            trial = trial.replace(
                steps=int(curves.steps[-1]) * len(curves.seeds),
                seconds=float(curves.wall_seconds[-1]),
            )
        if pruned is not None:
            return trial.replace(state="pruned", values=tuple(self._values(curves)[: pruned + 1]))
        trial = trial.replace(values=tuple(self._values(curves)))
        value = None if curves is None or reason else self._objective(curves)
        if value is None:
            return trial.replace(state="failed", reason=reason or f"no absolute {self.plan.metric}")
        return trial.replace(state="complete", value=value)

    def _objective(self, curves: Curves) -> float | None:
        """The objective of a finished run; None if it is not finite."""
        if self.plan.metric not in curves.absolute:
            return None
        return _finite(curves.absolute[self.plan.metric].mean())

    def _pruned(self, run: Run, curves: Curves | None, rule: Rule) -> int | None:
        """The evaluation at which a trial with these results is pruned; None if none yet."""
        if curves is None:
            return None
        late = [
            value if step >= WARMUP_SHARE * run.steps else None
            for value, step in zip(self._values(curves), curves.steps, strict=True)
        ]
        return rule.pruned_at(late)

    def _values(self, curves: Curves | None) -> list[float | None]:
        """The metric of a trial at every evaluation so far, averaged over its seeds."""
        metric = self.plan.metric
        if curves is None:
            return []
        if metric not in curves.metrics:
            raise nearest(metric, set(curves.metrics) - set(CLOCKS), what="metric")
        return [_finite(value) for value in curves.metrics[metric].mean(axis=0)]

    def _curves(self, folder: Path) -> Curves | None:
        """The results of a trial so far; None before its first evaluation."""
        try:
            stamp = tuple(
                (status.st_ino, status.st_size, status.st_mtime_ns)
                for name in ("metrics.jsonl", "summary.json")
                if (folder / name).exists()
                for status in [os.stat(folder / name)]
            )
        except FileNotFoundError:
            return None
        if self.read.get(folder, (None, None))[0] != stamp:
            self.read[folder] = stamp, self._load(folder)
        return self.read[folder][1]

    def _load(self, folder: Path) -> Curves | None:
        try:
            return load(folder)
        except UserError:
            if is_finished(folder):
                raise
            return None

    # Files.

    def _file(self, batch: int) -> Path:
        return self.folder / "batches" / f"{batch:04}.json"

    def _write(self, batch: Sequence[Trial]) -> None:
        make_below(self.folder, Path("batches"))
        write_atomic(self._file(batch[0].batch), encode(list(batch)))


def open_study(folder: Path, plan: Plan) -> Study:
    """The study of `plan` in `folder`, begun or not. Raises `UserError` if the folder holds another
    study, or runs."""
    path = folder / STUDY
    if os.path.lexists(folder / "config.json"):
        raise UserError(f"{folder}: is a run folder; choose another --out")
    make_below(folder, Path())
    if not os.path.lexists(path):
        write_atomic(path, encode({"settings_version": VERSION, "plan": plan}))
        return Study(folder, plan)
    with explained(path):
        file = decode(read_regular(path), _File, source=path)
    check_version(file.settings_version, source=str(path))
    before, now = (
        msgspec.json.decode(msgspec.json.encode(each))
        for each in (from_json(bytes(file.plan), Plan, source=str(path)), plan)
    )
    different = [name for name in now if now[name] != before[name]]
    if different:
        name = different[0]
        raise UserError(
            f"{folder}: holds a study with another {name}"
            + ("" if isinstance(now[name], dict) else f" ({before[name]}, not {now[name]})")
            + "; choose another --out"
        )
    return Study(folder, plan)


class _File(msgspec.Struct):
    plan: msgspec.Raw
    settings_version: Any = None


def describe(trial: Trial, metric: str) -> str:
    """A trial's result in a line."""
    result = f"{metric} {trial.value:.4g}" if trial.value is not None else trial.state
    if trial.state == "pruned":
        result = f"pruned after {trial.steps:,} steps"
    reason = f" ({trial.reason})" if trial.reason else ""
    return f"trial {trial.number}  {result}{reason}  {words(trial.settings)}"


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
