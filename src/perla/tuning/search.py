"""Choice of the next settings, and the rule that stops a bad trial, by Optuna.

Both depend on the trials of earlier batches alone, and the samplers are seeded anew for every
trial. So a search that was cut anywhere goes on as if it had not been, and several processes that
share a folder choose the same settings without talking to each other.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from perla.config import Config
from perla.envs.bridges.optional import import_optional
from perla.tuning.space import Dimension, Space, takes_floats

Search = Literal["tpe", "random"]
"""Tree-structured Parzen estimator (Bergstra et al., 2011), or independent random settings."""
Pruner = Literal["median", "none"]
"""Stop trials whose best evaluation so far is below the median of the others at the same point
(Golovin et al., 2017), or none."""
State = Literal["running", "complete", "pruned", "failed"]

STARTUP_TRIALS = 10
"""Random trials before the estimator chooses."""
STARTUP_COMPLETE = 4
"""Complete trials before any is pruned."""
TRIES, RANDOM_TRIES = 20, 100
"""Draws by the search, and then at random, of settings that no trial has had, before settings are
repeated."""


class Trial(Config, frozen=True, kw_only=True):
    """Settings and their result."""

    number: int
    """Its place in the study, from 0 on."""
    batch: int
    """Its batch. Trials of a batch were chosen together."""
    params: dict[str, int | float]
    """Setting → the number that was drawn: of a range, or the position of a choice."""
    settings: dict[str, Any]
    """Setting → value."""
    state: State = "running"
    """Running, complete, pruned (stopped by the rule) or failed."""
    value: float | None = None
    """The objective, higher is better; none unless complete."""
    values: tuple[float | None, ...] = ()
    """The metric at each evaluation, averaged over the tuning seeds; up to the one at which the
    trial was pruned."""
    steps: int = 0
    """Environment steps of all seeds."""
    seconds: float = 0.0
    """Wall-clock seconds of training and evaluating."""
    reason: str = ""
    """Why it failed."""


def load_optuna() -> Any:
    """Optuna. Raises `UserError` with the pip command if it is not installed."""
    return import_optional("optuna", extra="tune")


def ask(
    space: Space, history: Sequence[Trial], count: int, *, seed: int, search: Search = "tpe"
) -> list[Trial]:
    """The next `count` trials after `history`, all of which have ended.

    Settings are not repeated while the space has others that are found within some draws.
    """
    optuna, batch = load_optuna(), 1 + max((trial.batch for trial in history), default=-1)
    asked: list[Trial] = []
    with _quiet(optuna):
        study = _study(optuna, space, history)
        for number in range(len(history), len(history) + count):
            params: dict[str, int | float] = {}
            for attempt in range(TRIES + RANDOM_TRIES):
                own = int(np.random.SeedSequence([seed, number, attempt]).generate_state(1)[0])
                study.sampler = _sampler(optuna, search if attempt < TRIES else "random", own)
                draw = study.ask()
                params = _draw(draw, space)
                if all(params != trial.params for trial in (*history, *asked)):
                    break
                study.tell(draw, state=optuna.trial.TrialState.FAIL)
            settings = _settings(space, params)
            asked.append(Trial(number=number, batch=batch, params=params, settings=settings))
    return asked


class Rule:
    """The rule that prunes a trial, given those of earlier batches."""

    def __init__(self, space: Space, history: Sequence[Trial], pruner: Pruner) -> None:
        self.optuna, self.active = load_optuna(), pruner == "median"
        if not self.active:
            return
        self.pruner = self.optuna.pruners.MedianPruner(
            n_startup_trials=STARTUP_COMPLETE, n_warmup_steps=1
        )
        with _quiet(self.optuna):
            self.study = _study(self.optuna, space, history)

    def pruned_at(self, values: Sequence[float | None]) -> int | None:
        """The first evaluation at which a trial with these `values` is pruned; None: it goes on.
        The evaluation before training prunes nothing."""
        if not self.active:
            return None
        known: dict[int, float] = {}
        with _quiet(self.optuna):
            for number, value in enumerate(values):
                if value is None:
                    continue
                known[number] = value
                running = self.optuna.trial.create_trial(
                    state=self.optuna.trial.TrialState.RUNNING, intermediate_values=known
                )
                if self.pruner.prune(self.study, running):
                    return number
        return None


def best(history: Sequence[Trial]) -> Trial | None:
    """The complete trial with the highest value, the first of equals; None if there is none."""
    complete = [trial for trial in history if trial.value is not None]
    return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


# --- Optuna -------------------------------------------------------------------------------------


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Keep Optuna's log and its warnings about experimental parts to itself."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _study(optuna: Any, space: Space, history: Sequence[Trial]) -> Any:
    """A study in memory with the trials of `history`."""
    states = optuna.trial.TrialState
    study = optuna.create_study(direction="maximize")
    distributions = {name: _distribution(optuna, space, name) for name in space}
    for trial in history:
        state = {"complete": states.COMPLETE, "pruned": states.PRUNED}.get(trial.state, states.FAIL)
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=trial.value,
                params=trial.params,
                distributions={name: distributions[name] for name in trial.params},
                intermediate_values={
                    number: value for number, value in enumerate(trial.values) if value is not None
                },
            )
        )
    return study


def _sampler(optuna: Any, name: Search, seed: int) -> Any:
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True, multivariate=True
    )


def _distribution(optuna: Any, space: Space, name: str) -> Any:
    distributions, dimension = optuna.distributions, space[name]
    if dimension.choices is not None:
        return distributions.CategoricalDistribution(range(len(dimension.choices)))
    low, high = dimension.low, dimension.high
    if is_whole(name, dimension):
        step = 1 if dimension.step is None else int(dimension.step)
        return distributions.IntDistribution(low, high, log=dimension.log, step=step)
    return distributions.FloatDistribution(low, high, log=dimension.log, step=dimension.step)


def is_whole(name: str, dimension: Dimension) -> bool:
    """True if the range of the setting `name` has whole numbers only."""
    return dimension.choices is None and not takes_floats(name)


def _draw(draw: Any, space: Space) -> dict[str, int | float]:
    """Draw a number for every setting that applies."""
    params: dict[str, int | float] = {}
    optuna = load_optuna()
    for name, dimension in space.items():
        if dimension.is_set(_settings(space, params)):
            each = _distribution(optuna, space, name)
            if dimension.choices is not None:
                params[name] = draw.suggest_categorical(name, each.choices)
            elif is_whole(name, dimension):
                params[name] = draw.suggest_int(
                    name, each.low, each.high, log=each.log, step=each.step
                )
            else:
                params[name] = draw.suggest_float(
                    name, each.low, each.high, log=each.log, step=each.step
                )
    return params


def _settings(space: Space, params: Mapping[str, int | float]) -> dict[str, Any]:
    """The settings that the numbers of a trial stand for."""
    return {
        name: number if (choices := space[name].choices) is None else choices[int(number)]
        for name, number in params.items()
    }
