"""`perla.diagnose`: the most that policy embedding can gain in an environment, from Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from perla.analysis.stats import Score
from perla.api.execution import Number
from perla.api.frames import data_frame
from perla.config import to_plain
from perla.envs import objects
from perla.envs.registry import make_env
from perla.variance import ALGO, LAMBDAS, STATES, STEPS, report
from perla.variance.diagnosis import Diagnosis as Numbers
from perla.variance.plan import Plan
from perla.variance.progress import Bars, silent

if TYPE_CHECKING:
    from pandas import DataFrame


class Diagnosis:
    """The noise of a method in an environment by its causes, and a forecast."""

    def __init__(self, plan: Plan, numbers: Numbers) -> None:
        self._plan = plan
        self.numbers = numbers
        """All estimates, for each λ, with 95% intervals."""
        self.forecast = numbers.forecast
        """The forecast in one sentence."""
        self.gain: Score = numbers.gain[numbers.place]
        """By how much policy embedding can raise the policy gradient's signal-to-noise ratio at
        most, at the method's own λ: point, low, high; 0.1 is a tenth."""

    def table(self) -> DataFrame:
        """A row for each λ: shares of the advantage's error by cause, and shares of the gradient's
        noise that exact critics remove. Raises `UserError` if pandas is not installed."""
        numbers = self.numbers
        rows = [
            {"lambda": lam, "mean_square": numbers.mean_square[i].point}
            | {name: scores[i].point for name, scores in numbers.parts.items()}
            | {f"removed_{name}": scores[i].point for name, scores in numbers.removed.items()}
            | {"snr": numbers.snr[i].point, "gain": numbers.gain[i].point}
            for i, lam in enumerate(numbers.lambdas)
        ]
        return data_frame(rows).set_index("lambda")

    def plot(self) -> Figure:
        """Both in a figure, against λ."""
        return report.figure(self._plan, self.numbers)

    def save(self, out: str | PathLike[str]) -> None:
        """Write `diagnose.json` and `diagnose.png` to the folder `out`. Raises `UserError` if it
        has a diagnosis or cannot be written."""
        report.save(Path(out), self._plan, self.numbers)

    def __repr__(self) -> str:
        return f"<Diagnosis: {self.forecast}>"


def diagnose(
    env: Any,
    algo: str = ALGO,
    *,
    steps: Number = STEPS,
    states: Number = STATES,
    lambdas: Number | Iterable[Number] = LAMBDAS,
    seed: Number = 0,
    preset: str = "default",
    env_options: Mapping[str, Any] | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Diagnosis:
    """Forecast the most that policy embedding can gain on `env`, an environment in JAX.

    `algo`, an actor-critic with λ-returns, is trained for `steps` environment steps. From `states`
    states that it then visits, each of another rollout, continuations are played to the episode's
    end. Unbiased estimates divide the error of the advantage by its causes, at each of the
    `lambdas` and at the method's own λ. `env`, `preset`, `env_options` and `settings` are as of
    `perla.train`.

    Raises `UserError` for a mistake, for a method without λ-returns or values of states, and for an
    environment outside JAX, which cannot be set back to a visited state.
    """
    id, options = objects.identify(env), to_plain(dict(env_options or {}))
    plan = Plan.read(
        id,
        options,
        algo,
        preset,
        to_plain(settings),
        steps=steps,
        states=states,
        lambdas=lambdas,
        seed=seed,
    )
    make = objects.factory(id, env, options)
    made = make_env(id, **options) if make is None else make()
    bars = Bars()
    try:
        return Diagnosis(plan, plan.carry_out(made, silent if quiet else bars))
    finally:
        bars.close()
