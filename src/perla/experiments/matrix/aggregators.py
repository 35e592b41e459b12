"""Aggregators on matrix games: which ones find the best joint action with a fitted critic."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from perla.analysis import figures
from perla.config import tag
from perla.envs import matrix
from perla.experiments.experiment import Findings, Job, Options, Scale, Status, Verdict
from perla.experiments.matrix import fitted_critic
from perla.methods.aggregators import Entropic, Max, Mean, UpperQuantile
from perla.methods.estimators import Exact, Sampled

AGGREGATORS = (Mean(), Entropic(eta=1.0), UpperQuantile(quantile=0.9), Max())
BEST = 8.0
MOST = 0.95
"""Least share of seeds with the best payoff where an aggregator finds it. Where it does not, the
share is at most 1 − MOST."""


class Size(NamedTuple):
    """The amount of computation at a scale."""

    seeds: int
    games: tuple[tuple[int, int], ...]
    """(N, |A|) of the games that the claim is about."""
    larger: tuple[tuple[int, int], ...]
    """(N, |A|) of the games where 100 samples may miss the best response."""


SMALL = ((2, 3), (3, 3), (2, 15), (5, 3))
SIZES: dict[Scale, Size] = {
    "smoke": Size(2, SMALL[:1], ()),
    "quick": Size(20, SMALL, ((6, 3), (10, 3))),
    "paper": Size(100, SMALL, ((6, 3), (10, 3))),
}


def make_game(game: tuple[int, int]) -> matrix.MatrixGame:
    """Make the paper's game of N agents and |A| actions."""
    return matrix.make_env("overgeneralisation-n{}-a{}".format(*game))


def compute_payoffs(game: tuple[int, int], size: Size) -> list[list[float]]:
    """Return the final payoff of every seed, for each aggregator."""
    payoffs = fitted_critic.outcomes(
        make_game(game), AGGREGATORS, estimator=estimator(game, size), seeds=size.seeds
    )
    return payoffs[:, 0].tolist()


def estimator(game: tuple[int, int], size: Size) -> Exact | Sampled:
    """Return the estimator over the other agents' joint actions."""
    return Exact() if game in size.games else Sampled(num_samples=100)


def create_job(game: tuple[int, int], size: Size) -> Job:
    """Create the job of all aggregators on a game."""
    depends = [repr(AGGREGATORS), repr(estimator(game, size)), fitted_critic.FIT._asdict()]
    name = "N = {}, |A| = {}".format(*game)
    return Job(name, [*depends, size.seeds], partial(compute_payoffs, game, size))


def compute(scale: Scale, options: Options) -> Findings:
    """Test every aggregator on every game."""
    size = SIZES[scale]
    games = size.games + size.larger
    payoffs = options.cached([create_job(game, size) for game in games])
    reached = {
        (game, tag(aggregator)): by_seed.count(BEST)
        for game, by_aggregator in zip(games, payoffs, strict=True)
        for aggregator, by_seed in zip(AGGREGATORS, by_aggregator, strict=True)
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
    judged = {name: by_game[: len(size.games)] for name, by_game in shares.items()}
    picture = figures.against(
        [actions ** (agents - 1) for agents, actions in games],
        shares,
        xlabel="Joint actions of the others",
        ylabel="Seeds that reach the best payoff, share",
    )
    return Findings(judge(judged, size), rows, {"aggregators": picture})


def judge(shares: dict[str, list[float]], size: Size) -> Verdict:
    """Judge the claim from the share of seeds with the best payoff, by aggregator and game."""
    optimistic = shares["max"] + shares["entropic"]
    mean_stays = max(shares["mean"]) <= 1 - MOST
    optimists_find = min(optimistic) >= MOST
    both, either = mean_stays and optimists_find, mean_stays or optimists_find
    status: Status = "holds" if both else "holds in part" if either else "does not hold"
    games = f"{len(size.games)} game{'s' * (len(size.games) > 1)}"
    reason = (
        f"on {games} the mean reaches {BEST:g} in at most "
        f"{max(shares['mean']):.0%} of {size.seeds} seeds, max and entropic in at least "
        f"{min(optimistic):.0%}"
    )
    return Verdict(status, reason)
