"""An experiment is data: what is claimed, the runs that test it, and when the claim holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from matplotlib.figure import Figure

from perla.analysis.load import Curves
from perla.suites.suite import Cell, Suite

Scale = Literal["smoke", "quick", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)
METRIC = "return_sampled"
"""What the paper compares on foraging."""
Status = Literal["holds", "holds in part", "does not hold", "not tested"]


class Verdict(NamedTuple):
    """What became of a claim, and the numbers that say so."""

    status: Status
    reason: str


class Findings(NamedTuple):
    """What a calculation found."""

    verdict: Verdict
    rows: list[dict[str, str]]
    """A table of it: column → cell."""
    figures: dict[str, Figure]
    """Its figures by name."""
    claims: list[dict[str, str]] = []
    """What was claimed in particular, with a verdict for each."""


class Part(NamedTuple):
    """A share of a calculation that depends on no other."""

    name: str
    """What people call it."""
    depends: Any
    """All that its result depends on, as JSON holds it."""
    compute: Callable[[], Any]
    """Gives its result, as JSON holds it; can be sent to another process."""
    weight: float = 1.0
    """About how long it takes beside other parts."""


class Conduct(NamedTuple):
    """How a calculation goes about it."""

    say: Callable[[str], None]
    """Tells people how far it is."""
    recall: Callable[[Sequence[Part]], list[Any]]
    """The results of parts, in their order; computed only where an earlier call with the same
    folder has not."""


class Calculation(NamedTuple):
    """An experiment that trains nothing."""

    figure: str
    """Where the paper says it."""
    claim: str
    """What the paper says, in our words."""
    rule: str
    """When the claim holds, in words."""
    compute: Callable[[Scale, Conduct], Findings]
    """What comes of it."""
    takes: str
    """How long it was seen to take, on two cores."""

    def cells(self, scale: Scale) -> list[Cell]:
        """None."""
        return []


class Experiment(NamedTuple):
    """An experiment of the paper."""

    figure: str
    """Where the paper shows it."""
    claim: str
    """What the paper says, in our words."""
    rule: str
    """When the claim holds, in words; what `judge` computes."""
    suites: Mapping[Scale, Suite]
    """The runs that test it at every scale."""
    judge: Callable[[Sequence[Curves]], Verdict]
    """The verdict from finished runs."""
    draw: Callable[[Sequence[Curves]], dict[str, Figure]]
    """Its figures by name."""
    metric: str = METRIC
    """What is compared."""

    def cells(self, scale: Scale) -> list[Cell]:
        """The runs that test it at a scale."""
        return self.suites[scale].cells()
