"""Experiments as data: a claim of the paper, the runs that test it, and the rule of the verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from matplotlib.figure import Figure

from perla.analysis.load import Curves
from perla.errors import UserError, nearest
from perla.suites.suite import Cell, Suite

Scale = Literal["smoke", "quick", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)
METRIC = "return_sampled"
"""The metric that the paper compares on foraging."""
Status = Literal["holds", "holds in part", "does not hold", "not tested"]


class Verdict(NamedTuple):
    """The status of a claim and the numbers that decide it."""

    status: Status
    reason: str


class Findings(NamedTuple):
    """The results of an experiment."""

    verdict: Verdict
    rows: list[dict[str, str]]
    """A table of the results: column → cell."""
    figures: dict[str, Figure]
    """Figures by name."""
    claims: list[dict[str, str]] = []
    """Single claims of the figure, each with its verdict."""


class Job(NamedTuple):
    """An independent share of a calculation."""

    name: str
    """Name in progress messages and in the result's file name."""
    depends: Any
    """Everything that the result depends on, as JSON holds it."""
    compute: Callable[[], Any]
    """Computes the result, as JSON holds it. It can be pickled."""
    weight: float = 1.0
    """Approximate duration relative to other jobs."""


class Options(NamedTuple):
    """The way in which a calculation reports its progress and computes its jobs."""

    say: Callable[[str], None]
    """Prints a progress message."""
    cached: Callable[[Sequence[Job]], list[Any]]
    """Returns the results of jobs, in their order; computes only those that no earlier call with
    the same folder has computed."""


class Calculation(NamedTuple):
    """An experiment that trains no runs."""

    figure: str
    """The place in the paper."""
    claim: str
    """The paper's claim, in our words."""
    rule: str
    """The rule by which the claim is judged, in words."""
    compute: Callable[[Scale, Options], Findings]
    """Computes the results at a scale."""
    takes: str
    """Measured duration on two cores, as a clause."""

    def cells(
        self, scale: Scale, family: str | None = None, envs: Sequence[str] = ()
    ) -> list[Cell]:
        """Return no cells. Raises `UserError` if environments or their `family` are named."""
        if family is not None or envs:
            named = f"env {','.join(envs)}" if envs else f"family {family}"
            raise UserError(f"{named}: a calculation has no environments")
        return []


class Experiment(NamedTuple):
    """An experiment whose claim is judged from training runs."""

    figure: str
    """The place in the paper."""
    claim: str
    """The paper's claim, in our words."""
    rule: str
    """The rule that `judge` computes, in words."""
    suites: Mapping[Scale, Suite]
    """The suite of runs at each scale."""
    judge: Callable[[Sequence[Curves]], Verdict]
    """Computes the verdict from finished runs."""
    draw: Callable[[Sequence[Curves]], dict[str, Figure]]
    """Draws the figures, by name."""
    metric: str = METRIC
    """The metric of the comparison."""
    families: Sequence[str] = ()
    """Families of environments that have the same maps; the first is that of the suites."""

    def cells(
        self, scale: Scale, family: str | None = None, envs: Sequence[str] = ()
    ) -> list[Cell]:
        """Return the runs at a scale, in the environments of a `family` (None: the suites' own);
        only those on `envs`, if any are named.

        Raises `UserError` for a family that does not have the experiment's maps, and for an
        environment that is not among them.
        """
        suite = self.suites[scale]
        if family is not None:
            if not self.families:
                raise UserError(f"family {family}: this experiment has one family of environments")
            if family not in self.families:
                raise nearest(family, self.families, what="family of this experiment")
            suite = suite.in_family(family)
        cells = suite.cells()
        known = list(dict.fromkeys(cell.run.env for cell in cells))
        for env in envs:
            if env not in known:
                raise nearest(env, known, what="environment of this experiment")
        return [cell for cell in cells if not envs or cell.run.env in envs]
