"""`perla.tune`: a search of a method's settings from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perla.analysis.load import Curves
from perla.api.compare import Comparison, Here, carry_out
from perla.api.execution import count
from perla.api.frames import data_frame
from perla.config import Count, convert, to_plain
from perla.envs import objects
from perla.envs.registry import make_env
from perla.methods.settings import configure
from perla.runs.spec import Seed, Steps, read_seeds
from perla.suites.display import create_display
from perla.suites.executors import Executor, Stop, never
from perla.suites.local import Local
from perla.tuning import report
from perla.tuning.search import Pruner, Search, Trial, load_optuna
from perla.tuning.space import check_space, check_trials, read_space
from perla.tuning.study import Budget, Plan, Study, check_seeds, open_study

if TYPE_CHECKING:
    from pandas import DataFrame


class Tuning:
    """A finished search of settings."""

    def __init__(self, study: Study, history: list[Trial], comparison: Comparison) -> None:
        self._facts = report.facts(study, history)
        self._words = report.best_in_words(study, history)
        self.trials = history
        """All trials, in order."""
        self.settings: dict[str, Any] = self._facts["settings"]
        """The settings of the best trial, by name."""
        self.value = float(self._facts["best_value"])
        """The objective of the best trial, on the tuning seeds: too good a number to report."""
        self.budget: Budget = study.budget(history)
        """The cost of the search: numbers of trials, environment steps and seconds."""
        self.comparison = comparison
        """The preset's settings beside the best ones, on the reporting seeds."""
        self.out = study.folder
        """The folder of the study; its `best.json` is a run with the best settings."""

    @property
    def runs(self) -> list[Curves]:
        """The learning curves and results on the reporting seeds."""
        return self.comparison.runs

    def table(self) -> DataFrame:
        """A row for each trial: its state, objective, environment steps and settings."""
        rows = [
            {"trial": each.number, "state": each.state, "value": each.value, "steps": each.steps}
            | each.settings
            for each in self.trials
        ]
        return data_frame(rows).set_index("trial")

    def __repr__(self) -> str:
        return f"<Tuning: {self._words}>"


def tune(
    env: Any,
    algo: str = "perla-ippo",
    *,
    steps: Any,
    out: str | PathLike[str],
    space: str | PathLike[str] | Mapping[str, Any] = "paper",
    trials: Any = 20,
    tuning_seeds: Any = (100, 101, 102),
    seeds: Any = 10,
    preset: str = "default",
    env_options: Mapping[str, Any] | None = None,
    num_evaluations: Any = None,
    metric: str = "return",
    search: Search = "tpe",
    pruner: Pruner = "median",
    parallel: Any = 4,
    seed: Any = 0,
    processes: Any = None,
    quiet: bool = False,
    **settings: Any,
) -> Tuning:
    """Search settings of `algo` on `env` (as of `perla.train`) on the `tuning_seeds`, and compare
    the best with those of the preset on `seeds`, none of which may be a tuning seed.

    `space` maps settings to lists of values, ranges (`{"low": 1e-4, "high": 1e-2, "log": True}`) or
    Optuna's distributions; or it is the JSON file of one, or `"paper"`. Every run has `steps` of
    each seed. The same call with the same `out` continues, and `perla tune` describes the rest.

    Raises `UserError` for a mistake, and if no trial is complete.
    """
    source = dict(space) if isinstance(space, Mapping) else str(space)
    dimensions, left = read_space(source, algo)
    if left and not quiet:
        print(f"space {source}: without {', '.join(left)}: no settings of {algo}")
    options = to_plain(dict(env_options or {}))
    id, executor = _executor(env, options, count(processes, "processes"))
    plan = Plan(
        env=id,
        env_options=options,
        algo=algo,
        preset=preset,
        config=configure(algo, preset, to_plain(settings)),
        space=dict(dimensions),
        steps=convert(to_plain(steps), Steps, name="steps"),
        tuning_seeds=read_seeds(to_plain(tuning_seeds), name="tuning_seeds"),
        num_evaluations=count(num_evaluations, "num_evaluations"),
        metric=metric,
        seed=convert(to_plain(seed), Seed, name="seed"),
        search=convert(search, Search, name="search"),
        pruner=convert(pruner, Pruner, name="pruner"),
        parallel=convert(to_plain(parallel), Count, name="parallel"),
    )
    check_space(plan.space, algo, plan.config, settings)
    reporting = read_seeds(to_plain(seeds))
    wanted = convert(to_plain(trials), Count, name="trials")
    return _tune(plan, wanted, reporting, Path(out), executor, quiet=quiet)


class _Executors:
    """Makes the executor of trials, and that of reported runs."""

    def __init__(self, processes: int | None, make_env: Callable[[], Any] | None) -> None:
        self.processes, self.make_env = processes, make_env

    def __call__(self, stop: Stop = never) -> Executor:
        """An executor which stops the tasks for which `stop` is true."""
        if self.make_env is not None:
            return Here(self.make_env, stop=stop)
        return Local(self.processes, stop=stop)


def _executor(
    env: Any, options: Mapping[str, Any], processes: int | None
) -> tuple[str, _Executors]:
    """The environment's id, and its executors: this process for one that no other can make."""
    id = objects.identify(env)
    make = objects.factory(id, env, options)
    if make is None:
        make_env(id, **options)
    return id, _Executors(processes, make)


def _tune(
    plan: Plan,
    trials: int,
    seeds: Iterable[int],
    out: Path,
    executor: _Executors,
    *,
    quiet: bool,
) -> Tuning:
    """Search, and compare on the reporting `seeds`."""
    reporting = tuple(seeds)
    check_seeds(plan.tuning_seeds, reporting)
    check_trials(plan.space, trials)
    load_optuna()
    study = open_study(out, plan)

    def say(text: str) -> None:
        if not quiet:
            print(text)

    history = study.search(trials, executor, lambda: create_display(quiet=quiet), say)
    say(report.best_in_words(study, history))
    say(report.budget_in_words(study, history))
    report.write_best(study, history, reporting)
    cells = report.report_cells(study, history, reporting)
    facts = {"tuning": report.facts(study, history)}
    comparison = carry_out(cells, out, executor(), plan.metric, None, quiet=quiet, facts=facts)
    return Tuning(study, history, comparison)
