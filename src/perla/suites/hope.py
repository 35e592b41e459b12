"""Which aggregates find the best joint action of the matrix games, given a critic that knows it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from perla import overgeneralisation
from perla.analysis import figures
from perla.config import tag
from perla.envs import matrix
from perla.envs.matrix import MatrixGame
from perla.methods.aggregators import Aggregator, Entropic, Max, Mean, UpperQuantile
from perla.methods.estimators import Auto, Sampled
from perla.suites.experiment import Conduct, Findings, Scale, Status, Verdict

AGGREGATORS = (Mean(), Entropic(eta=1.0), UpperQuantile(q=0.9), Max())
BEST = 8.0
MOST = 0.95
"""Share of the seeds that reach the best payoff where an aggregate finds it, at least; where it
does not, the rest at most."""


class Size(NamedTuple):
    """How much is computed."""

    seeds: int
    games: tuple[tuple[int, int], ...]
    """(N, |A|) of those that the claim is about."""
    larger: tuple[tuple[int, int], ...]
    """Those where 100 draws may miss the best answer."""


SMALL = ((2, 3), (3, 3), (2, 15), (5, 3))
SIZES: dict[Scale, Size] = {
    "smoke": Size(2, SMALL[:1], ()),
    "quick": Size(20, SMALL, ((6, 3), (10, 3))),
    "paper": Size(100, SMALL, ((6, 3), (10, 3))),
}


def climb(
    game: MatrixGame, aggregator: Aggregator, estimator: Auto | Sampled, seeds: int
) -> list[float]:
    """What every seed earns in the end."""
    return overgeneralisation.outcomes(game, aggregator, estimator=estimator, seeds=seeds).tolist()


def compute(scale: Scale, conduct: Conduct) -> Findings:
    """Every aggregate on every game."""
    size = SIZES[scale]
    rows: list[dict[str, str]] = []
    shares: dict[str, list[float]] = {tag(aggregator): [] for aggregator in AGGREGATORS}
    for agents, actions in size.games + size.larger:
        conduct.say(f"{agents} agents of {actions} actions")
        game = matrix.make(f"overgeneralisation-n{agents}-a{actions}")
        small = (agents, actions) in size.games
        estimator = Auto() if small else Sampled(k=100)
        row = {
            "game": f"N = {agents}, |A| = {actions}",
            "joint actions of the others": f"{actions ** (agents - 1):,}",
            "of which seen": "all" if small else "100 drawn",
            "p*": f"{overgeneralisation.threshold(agents):.3f}",
        }
        for aggregator in AGGREGATORS:
            earned = conduct.recall(
                f"{row['game']}, {tag(aggregator)}",
                [repr(aggregator), repr(estimator), size.seeds],
                partial(climb, game, aggregator, estimator, size.seeds),
            )
            reached = earned.count(BEST)
            row[tag(aggregator)] = f"{reached} of {size.seeds}"
            shares[tag(aggregator)].append(reached / size.seeds)
        rows.append(row)
    inside = {name: found[: len(size.games)] for name, found in shares.items()}
    mean_stays = max(inside["mean"]) <= 1 - MOST
    hope_finds = min(inside["max"] + inside["entropic"]) >= MOST
    both, either = mean_stays and hope_finds, mean_stays or hope_finds
    status: Status = "holds" if both else "holds in part" if either else "does not hold"
    reason = (
        f"on {len(size.games)} games the mean reaches {BEST:g} in at most "
        f"{max(inside['mean']):.0%} of {size.seeds} seeds, max and entropic in at least "
        f"{min(inside['max'] + inside['entropic']):.0%}"
    )
    picture = figures.against(
        [actions ** (agents - 1) for agents, actions in size.games + size.larger],
        shares,
        xlabel="Joint actions of the others",
        ylabel="Seeds that reach the best payoff, share",
    )
    return Findings(Verdict(status, reason), rows, {"aggregators": picture})
