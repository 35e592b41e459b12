"""Many runs from Python: `perla.compare`, `perla.suite` and `perla.reproduce`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from perla.analysis import figures
from perla.analysis.compare import Comparison as Statistics
from perla.analysis.compare import compare as compare_runs
from perla.analysis.gather import gather, is_source
from perla.analysis.importers.series import Options
from perla.analysis.load import Curves, is_finished
from perla.api.execution import count, interruptible
from perla.api.frames import data_frame
from perla.api.run import Run
from perla.config import Positive, convert, encode, from_json, to_plain
from perla.envs import objects
from perla.envs.registry import Trust, make_env
from perla.errors import UserError, nearest
from perla.files import make_below
from perla.methods.recipes import RECIPES
from perla.methods.settings import configure
from perla.runs import execute
from perla.runs.callbacks import Progress, read_callbacks
from perla.runs.spec import Steps, read_seeds
from perla.suites import execute as suites
from perla.suites import results
from perla.suites.display import create_display
from perla.suites.execute import Outcome
from perla.suites.executors import Event, Executor, Stop, Task, never
from perla.suites.local import Local
from perla.suites.suite import Cell, Grid, Suite
from perla.suites.suite import load as load_suite

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from perla.experiments.experiment import Findings, Scale

Finished = Run | str | PathLike[str]
"""A run: as an object, or as its folder."""


class Comparison:
    """Methods side by side, with 95% bootstrap intervals and a verdict."""

    def __init__(
        self,
        statistics: Statistics | None,
        runs: Sequence[Curves],
        failures: Mapping[str, str],
        out: Path | None,
        notes: Sequence[str] = (),
    ) -> None:
        self._statistics = statistics
        self.runs = list(runs)
        """The learning curves and results of every run."""
        self.failures = dict(failures)
        """The reasons of the runs that failed, by their names."""
        self.out = out
        """The folder with the results, if there is one."""
        self.notes = list(notes)
        """Lines on what was joined, left out or assumed, and on the meaning of imported numbers."""

    @property
    def statistics(self) -> Statistics:
        """All statistics. Raises `UserError` if no two methods have results on the same
        environments."""
        if self._statistics is None:
            reasons = "; ".join(f"{name}: {text}" for name, text in self.failures.items())
            told = f" ({reasons})" if reasons else ""
            raise UserError(f"no two methods have results on the same environments{told}")
        return self._statistics

    @property
    def verdict(self) -> str:
        """The comparison in one sentence."""
        return self.statistics.verdict

    def table(self) -> DataFrame:
        """A row for each method: the IQM of its absolute, final and best metric over all runs, with
        the ends of their intervals."""
        return data_frame(
            [
                {"method": method.name}
                | {
                    f"{kind}{end}": float(getattr(getattr(method, kind), part))
                    for kind in ("absolute", "final", "best")
                    for end, part in (("", "point"), ("_low", "low"), ("_high", "high"))
                }
                for method in self.statistics.methods
            ]
        ).set_index("method")

    def plot(self) -> Figure:
        """Plot the learning curves against steps, time and FLOPs."""
        return figures.comparison(self.statistics)

    def __repr__(self) -> str:
        if self._statistics is None:
            return f"<Comparison: of nothing, {len(self.failures)} runs failed>"
        return f"<Comparison: {self.verdict}>"


def compare(
    *what: Finished | Mapping[str, Finished],
    env: Any = None,
    steps: Any = None,
    seeds: Any = 10,
    preset: str = "default",
    env_options: Mapping[str, Any] | None = None,
    num_evaluations: Any = None,
    eval_episodes: Any = None,
    absolute_episodes: Any = None,
    metric: str | None = None,
    threshold: float | None = None,
    reading: Mapping[str, Any] | None = None,
    out: str | PathLike[str] | None = None,
    processes: Any = None,
    quiet: bool = False,
    **settings: Any,
) -> Comparison:
    """Compare finished runs, or train methods with equal budgets and compare them.

    `what` is runs or their folders, also of other programs, or a mapping from names to these; or
    names of methods, which are trained on `env` (an id, a list of ids, or one object or function as
    of `perla.train`) for `steps` of each of the `seeds`, and evaluated as there. The same call
    continues if it was interrupted. With `out` the results are written into that folder. Methods
    need it, and share it with the command line.

    `reading` says how other programs' results are read: `tag`, their name of the return;
    `columns` of a CSV file, from ours to theirs; `tasks`, from their environments to perla's ids
    (or one id for all); `step_factor`, which multiplies their steps.

    Raises `UserError` for a mistake, and for runs that cannot be compared.
    """
    named = [pair for each in what for pair in _named(each)]
    folder = None if out is None else Path(out)
    methods = [one for name, one in named if name is None and isinstance(one, str)]
    if methods and all(method in RECIPES for method in methods) and len(methods) == len(named):
        if env is None or steps is None or folder is None:
            raise UserError("perla.compare: methods need env=…, steps=… and out=DIR")
        if reading is not None:
            raise UserError("reading: is for other programs' results, and these are methods")
        grid = {
            "algo": methods,
            "preset": preset,
            "steps": convert(to_plain(steps), Steps, name="steps"),
            "seeds": read_seeds(to_plain(seeds)),
            "env_options": to_plain(dict(env_options or {})),
            "num_evaluations": count(num_evaluations, "num_evaluations"),
            "eval_episodes": count(eval_episodes, "eval_episodes"),
            "absolute_episodes": count(absolute_episodes, "absolute_episodes"),
            "settings": to_plain(settings),
        }
        at_once = count(processes, "processes")
        return _train(env, grid, folder, metric, threshold, at_once, quiet=quiet)
    _check_finished(
        env=env, steps=steps, env_options=env_options, processes=processes,
        num_evaluations=num_evaluations, eval_episodes=eval_episodes,
        absolute_episodes=absolute_episodes, **settings,
    )  # fmt: skip
    return _compare_finished(named, reading or {}, folder, metric, threshold)


def suite(
    source: str | PathLike[str] | Mapping[str, Any],
    *,
    out: str | PathLike[str] | None = None,
    trust: Trust = (),
    metric: str | None = None,
    threshold: float | None = None,
    processes: Any = None,
    quiet: bool = False,
) -> Comparison:
    """Run the suite in a JSON file, or in a mapping with the same content, and compare its methods.

    The same call continues a suite that was interrupted. `out` is by default `runs/NAME`. Raises
    `UserError` for a mistake in it, and for an environment that is code, named by a file, and not
    in `trust`.
    """
    if isinstance(source, Mapping):
        loaded = from_json(encode(to_plain(dict(source))), Suite, source="suite")
    else:
        loaded = load_suite(Path(source), trust)
    folder = Path(out) if out is not None else Path("runs", loaded.name)
    executor = Local(count(processes, "processes"))
    return carry_out(loaded.cells(), folder, executor, metric, threshold, quiet=quiet)


def reproduce(
    experiment: str,
    *,
    scale: Scale = "quick",
    family: str | None = None,
    env: str | Iterable[str] = (),
    out: str | PathLike[str] | None = None,
    processes: Any = None,
    quiet: bool = False,
) -> Findings:
    """Repeat an experiment of the paper and check its claim: `perla list experiments` names them.

    `scale` is `smoke`, `quick` or `paper`. `family` is that of the environments, where there are
    several (`smac`: `skirmish`, or `smac` for the game); `env` are those to which it is restricted,
    and with the same `out` such parts add up. Returns the verdict, tables and figures,
    which are also in the folder `out`, by default `runs/reproduce-SCALE`. Raises `UserError` for an
    unknown name, and if other processes carry out some of the runs.
    """
    from perla.experiments import results as published
    from perla.experiments.catalogue import EXPERIMENTS
    from perla.experiments.experiment import SCALES, Experiment

    if experiment not in EXPERIMENTS:
        raise nearest(experiment, EXPERIMENTS, what="experiment")
    if scale not in SCALES:
        raise nearest(scale, SCALES, what="scale")
    chosen, workers = EXPERIMENTS[experiment], count(processes, "processes")
    base = Path(out) if out is not None else Path("runs", f"reproduce-{scale}")
    own = make_below(base, Path(experiment))
    envs = (env,) if isinstance(env, str) else tuple(env)
    cells = chosen.cells(scale, family, envs)
    if isinstance(chosen, Experiment):
        outcome = suites.carry_out(cells, base, Local(workers), create_display(quiet=quiet))
        check_complete(outcome)
        return published.judge(chosen, experiment, scale, outcome, own, family=family, envs=envs)
    say: Callable[[str], None] = (lambda text: None) if quiet else print
    return published.calculate(chosen, experiment, scale, own, processes=workers, say=say)


# --- Helpers ------------------------------------------------------------------------------------


class Here:
    """Executor of this process, for environments that no other process can make. A task is stopped
    at an evaluation, once `stop` is true for it."""

    def __init__(self, make_env: Callable[[], Any], *, stop: Stop = never) -> None:
        self.make_env, self.stop = make_env, stop

    def carry_out(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """Carry out `tasks` one after another."""
        for task in tasks:
            yield Event(task, "started")
            begun = (task.folder / "config.json").exists()

            def stop(progress: Progress, task: Task = task) -> None:
                if self.stop(task):
                    progress.stop()

            rest: dict[str, Any] = {
                "make_env": self.make_env, "pictures": False, "callbacks": read_callbacks([stop]),
            }  # fmt: skip
            try:
                with interruptible():
                    if begun:
                        execute.resume(task.folder, **rest)
                    else:
                        task.folder.parent.mkdir(parents=True, exist_ok=True)
                        execute.train(task.run, task.folder, **rest)
            except UserError as error:
                yield Event(task, "failed", str(error))
            else:
                yield Event(task, "finished" if is_finished(task.folder) else "stopped")


def _train(
    env: Any,
    grid: Mapping[str, Any],
    out: Path,
    metric: str | None,
    threshold: float | None,
    processes: int | None,
    *,
    quiet: bool,
) -> Comparison:
    """Train the methods of a `grid` on `env`, and compare them."""
    if len(set(grid["algo"])) < 2:
        raise UserError(f"{', '.join(grid['algo'])}: a comparison takes two methods or more")
    envs = list(env) if isinstance(env, (list, tuple)) else [env]
    ids = [objects.identify(each) for each in envs]
    for algo in grid["algo"]:  # Mistakes are told before anything runs.
        configure(algo, grid["preset"], grid["settings"])
    executor: Executor = Local(processes)
    for id, each in zip(ids, envs, strict=True):
        make = objects.factory(id, each, grid["env_options"])
        if make is None:
            make_env(id, **grid["env_options"])
        elif len(envs) > 1:
            raise UserError(f"{id}: objects are compared on one environment at a time")
        else:
            executor = Here(make)
    cells = Suite(name="comparison", grids=(Grid(env=tuple(ids), **_tuples(grid)),)).cells()
    return carry_out(cells, out, executor, metric, threshold, quiet=quiet)


def carry_out(
    cells: Sequence[Cell],
    out: Path,
    executor: Executor,
    metric: str | None,
    threshold: float | None,
    *,
    quiet: bool,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> Comparison:
    """Carry out `cells` below `out`, and compare their methods, on all tasks and on each. The
    summaries have the further `facts`."""
    outcome = suites.carry_out(cells, out, executor, create_display(quiet=quiet))
    check_complete(outcome)
    whole = results.complete(outcome.results)
    if len({run.method for run in whole}) < 2:
        return Comparison(None, outcome.results, outcome.failures, out)
    *_, statistics = results.write_tasks(
        whole, out, metric=metric, threshold=threshold, facts=facts
    )
    return Comparison(statistics, outcome.results, outcome.failures, out)


def check_complete(outcome: Outcome) -> None:
    """Raise `UserError` if other processes carry out some of the cells."""
    if outcome.pending:
        raise UserError(
            f"{len(outcome.pending)} cells are left to other processes, such as "
            f"{outcome.pending[0]}; the same call compares all when they have finished"
        )


def _named(each: Finished | Mapping[str, Finished]) -> list[tuple[str | None, Finished]]:
    """Runs with the names of their methods, if they have any."""
    return [*each.items()] if isinstance(each, Mapping) else [(None, each)]


def _check_finished(**training: Any) -> None:
    """Raise `UserError` for an option of training, which finished runs cannot follow."""
    for name, value in training.items():
        if value is not None:
            raise UserError(f"{name}: is for training, and these are finished runs; leave it out")


def _compare_finished(
    named: Sequence[tuple[str | None, Finished]],
    reading: Mapping[str, Any],
    folder: Path | None,
    metric: str | None,
    threshold: float | None,
) -> Comparison:
    """Compare finished runs, each with the name that the user gives its method."""
    found = gather([_source(name, one) for name, one in named], _reading(reading))
    if folder is not None:
        statistics = results.write(found.runs, folder, metric=metric, threshold=threshold)
    else:
        statistics = compare_runs(found.runs, metric=metric, threshold=threshold)
    return Comparison(statistics, found.runs, found.failures, folder, found.notes)


def _source(name: str | None, each: Finished) -> str | Path:
    """A run as a source of `gather`, with its name if it has one."""
    path = each.out if isinstance(each, Run) else Path(each)
    if path is None:
        raise UserError(f"{each!r}: has no folder to compare; train with out=DIR")
    if name is None and isinstance(each, str) and not is_source(each):
        methods = nearest(each, RECIPES, what="algorithm")
        raise UserError(f"{path}: no such folder; as a method: {methods}")
    return path if name is None else f"{name}={path}"


def _reading(given: Mapping[str, Any]) -> Options:
    """The value of `reading`. Raises `UserError` for an unknown name or a value of another kind."""
    names = {
        "tag": str,
        "columns": dict[str, str],
        "tasks": str | dict[str, str],
        "step_factor": Positive,
    }
    for name in given:
        if name not in names:
            raise nearest(name, names, what="reading")
    known = {
        name: convert(to_plain(value), names[name], name=f"reading: {name}")
        for name, value in given.items()
    }
    if isinstance(known.get("tasks"), str):
        known["tasks"] = {"": known["tasks"]}
    return Options(**known)


def _tuples(grid: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in grid.items()
    }
