"""Which aggregates find the best joint action of matrix games, given a critic that was shown it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from perla.analysis import figures
from perla.config import tag
from perla.envs import matrix
from perla.experiments.experiment import Conduct, Findings, Part, Scale, Status, Verdict
from perla.experiments.matrix import fitted_critic
from perla.methods.aggregators import Entropic, Max, Mean, UpperQuantile
from perla.methods.estimators import Auto, Sampled

AGGREGATORS = (Mean(), Entropic(eta=1.0), UpperQuantile(quantile=0.9), Max())
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


def world(game: tuple[int, int]) -> matrix.MatrixGame:
    """The paper's game of N agents and |A| actions."""
    return matrix.make_env("overgeneralisation-n{}-a{}".format(*game))


def climb(game: tuple[int, int], size: Size) -> list[list[float]]:
    """What every seed earns in the end by each aggregate."""
    earned = fitted_critic.outcomes(
        world(game), AGGREGATORS, estimator=estimator(game, size), seeds=size.seeds
    )
    return earned[:, 0].tolist()


def estimator(game: tuple[int, int], size: Size) -> Auto | Sampled:
    """How an aggregate is taken over the others' joint actions."""
    return Auto() if game in size.games else Sampled(num_samples=100)


def part(game: tuple[int, int], size: Size) -> Part:
    """All aggregates on a game."""
    known = [repr(AGGREGATORS), repr(estimator(game, size)), fitted_critic.FIT._asdict()]
    name = "N = {}, |A| = {}".format(*game)
    return Part(name, [*known, size.seeds], partial(climb, game, size))


def compute(scale: Scale, conduct: Conduct) -> Findings:
    """Every aggregate on every game."""
    size = SIZES[scale]
    games = size.games + size.larger
    earned = conduct.recall([part(game, size) for game in games])
    reached = {
        (game, tag(aggregator)): paid.count(BEST)
        for game, paids in zip(games, earned, strict=True)
        for aggregator, paid in zip(AGGREGATORS, paids, strict=True)
    }
    names = [tag(aggregator) for aggregator in AGGREGATORS]
    rows = [
        {
            "game": "N = {}, |A| = {}".format(*game),
            "joint actions of the others": f"{game[1] ** (game[0] - 1):,}",
            "of which seen": "all" if game in size.games else "100 drawn",
            "p*": f"{fitted_critic.threshold(game[0]):.3f}",
        }
        | {name: f"{reached[game, name]} of {size.seeds}" for name in names}
        for game in games
    ]
    shares = {name: [reached[game, name] / size.seeds for game in games] for name in names}
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
        [actions ** (agents - 1) for agents, actions in games],
        shares,
        xlabel="Joint actions of the others",
        ylabel="Seeds that reach the best payoff, share",
    )
    return Findings(Verdict(status, reason), rows, {"aggregators": picture})
