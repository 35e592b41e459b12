"""The paper's theorems on random games: the computations and the rule of each verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
from matplotlib.figure import Figure

from perla.analysis import figures
from perla.analysis.stats import Score
from perla.experiments.experiment import Findings, Options, Scale, Status, Verdict
from perla.experiments.theory import convergence, random_games
from perla.experiments.theory.random_games import Game
from perla.experiments.verdicts import SLOPE, SURE, VANISHED
from perla.methods.estimators import Sampled

KS = (1, 2, 5, 10, 100)
ERROR_KS = (1, 3, 10, 30, 100, 300, 1000)
LATIN_KS = (2, 3, 11, 31, 101, 307, 997)
"""The prime numbers nearest to these, as the Latin sampler needs."""


class Size(NamedTuple):
    """The amount of computation at a scale."""

    games: int
    draws: int
    trajectories: int
    repeats: int
    updates: int


SIZES: dict[Scale, Size] = {
    "smoke": Size(games=1, draws=4_096, trajectories=2_000, repeats=50, updates=10_000),
    "quick": Size(games=5, draws=65_536, trajectories=50_000, repeats=400, updates=40_000),
    "paper": Size(games=20, draws=262_144, trajectories=200_000, repeats=1_000, updates=160_000),
}
CONVERGENCE_K = 10
"""Joint actions that PERLA's actor-critic draws for Theorem 6."""
LENGTH = 40
"""Steps of a trajectory; γ⁴⁰ is 1.3e-4."""


class TheoremResult(NamedTuple):
    """The verdict, table row and figure of one theorem."""

    holds: bool
    row: dict[str, str]
    figure: Figure


def compute(scale: Scale, options: Options) -> Findings:
    """Test all theorems on the same games."""
    size = SIZES[scale]
    games = [random_games.random_game(seed) for seed in range(size.games)]
    gradients = []
    for seed, game in enumerate(games):
        options.say(f"policy gradients of game {seed + 1} of {size.games}")
        gradients.append(
            random_games.gradients(
                game, game.values, KS, trajectories=size.trajectories, length=LENGTH, seed=seed
            )
        )
    results = {
        "theorem-3": equal_expectations(gradients),
        "theorems-4-and-5": excess_variance(games, gradients),
    }
    options.say("variances of the critic's values")
    results = {"theorem-1": variance_of_the_critic(games, size)} | results
    options.say("errors of the estimate")
    results["error"] = error_of_the_estimate(games, size)
    results["theorem-6"] = convergence_to_an_optimum(games, size, options)
    held = [result.holds for result in results.values()]
    status: Status = "holds" if all(held) else "holds in part" if any(held) else "does not hold"
    reason = "; ".join(
        f"{result.row['claim']}: {result.row['found']}" for result in results.values()
    )
    return Findings(
        Verdict(status, f"on {size.games} random games {reason}"),
        [result.row for result in results.values()],
        {name: result.figure for name, result in results.items()},
    )


def row(claim: str, found: str, holds: bool) -> dict[str, str]:
    """Return a row of the table."""
    return {"claim": claim, "found": found, "verdict": "holds" if holds else "does not hold"}


def variance_of_the_critic(games: Sequence[Game], size: Size) -> TheoremResult:
    """Test Var Q̂ = Var Q / K + (K − 1)/K Var Q̃, for the true Q and for a random critic."""
    misses, shown = [], []
    for seed, game in enumerate(games):
        random = np.random.default_rng(seed).normal(size=game.reward.shape)
        for q in (game.values, random):
            for k in KS:
                found = random_games.sampled_values(game, q, k, size.draws, seed=seed)
                variance = found.var()
                fourth = ((found - found.mean()) ** 4).mean()
                error = float(np.sqrt((fourth - variance**2) / len(found)))
                predicted = random_games.predicted_variance(game, q, k)
                misses.append(abs(variance - predicted) / error)
                if game is games[0] and q is not random:
                    shown.append((around(float(variance), error), predicted))
    measured, predicted = zip(*shown, strict=True)
    holds = bool(max(misses) < SURE)
    text = f"{len(misses)} variances are off by {max(misses):.1f} standard errors at most"
    return TheoremResult(
        holds,
        row("Theorem 1", text, holds),
        figures.against(
            list(KS),
            {"measured": measured, "Theorem 1": predicted},
            xlabel="Joint actions sampled, K",
            ylabel="Variance of the critic's values",
            log_y=True,
        ),
    )


def equal_expectations(gradients: Sequence[random_games.Gradients]) -> TheoremResult:
    """Test E g^C = E g^P."""
    misses = []
    for found in gradients:
        for perla in found.perla.values():
            difference = found.centralised - perla
            error = difference.std(axis=0) / np.sqrt(len(difference))
            misses.append(np.abs(difference.mean(axis=0) / error).max())
    holds = bool(max(misses) < SURE)
    text = f"the means differ by {max(misses):.1f} standard errors at most"
    perla = gradients[0].perla[10]
    error = perla.std(axis=0) / np.sqrt(len(perla))
    return TheoremResult(
        holds,
        row("Theorem 3", text, holds),
        figures.agreement(
            gradients[0].centralised.mean(axis=0),
            [around(*pair) for pair in zip(perla.mean(axis=0), error, strict=True)],
            xlabel="Mean of the centralised estimator",
            ylabel="Mean of PERLA's",
            label="a parameter of the policy, K = 10",
        ),
    )


def excess_variance(
    games: Sequence[Game], gradients: Sequence[random_games.Gradients]
) -> TheoremResult:
    """Test Var g^P − Var g^D ≤ B²C²/(K(1 − γ²)), and the same bound without K for g^C."""
    shares, spans = [], []
    shown: dict[str, Sequence[Score | float]] = {}
    for game, found in zip(games, gradients, strict=True):
        perla = {k: excess_of(g, found.decentralised) for k, g in found.perla.items()}
        centralised = excess_of(found.centralised, found.decentralised)
        bounds = {k: random_games.bound(game, game.values, k) for k in KS}
        shares += [perla[k].high / bounds[k] for k in KS] + [centralised.high / bounds[1]]
        spans.append(centralised.point / perla[1].point)
        shown = shown or {
            "PERLA": list(perla.values()),
            "centralised": [centralised for _ in KS],
            "bound of Theorem 4": list(bounds.values()),
        }
    holds = bool(max(shares) <= 1)
    text = (
        f"the excess is {100 * min(shares):.1f} to {100 * max(shares):.1f}% of its bound; the "
        f"centralised one is {min(spans):.2f} to {max(spans):.2f} times that of K = 1"
    )
    return TheoremResult(
        holds,
        row("Theorems 4 and 5", text, holds),
        figures.against(
            list(KS),
            shown,
            xlabel="Joint actions sampled, K",
            ylabel="Variance above the decentralised one's",
            log_y=True,
        ),
    )


def convergence_to_an_optimum(games: Sequence[Game], size: Size, options: Options) -> TheoremResult:
    """Test that ‖∇J‖ of actor-critics with PERLA's and the centralised estimator goes to zero; draw
    the decentralised one's beside them, for which the paper claims nothing."""
    counts = [1, *(round(size.updates / 2**i) for i in range(9, -1, -1))]
    norms: dict[convergence.Kind, list[np.ndarray]] = {}
    for kind in get_args(convergence.Kind):
        options.say(f"convergence of {kind} actor-critics")
        norms[kind] = [
            convergence.gradient_norms(game, kind, CONVERGENCE_K, counts, seed)
            for seed, game in enumerate(games)
        ]
    shares = {kind: [each[-1] / each[0] for each in found] for kind, found in norms.items()}
    claimed = shares["centralised"] + shares["PERLA"]
    holds = bool(max(claimed) < VANISHED)

    def span(kind: convergence.Kind) -> str:
        return f"{100 * min(shares[kind]):.1f} to {100 * max(shares[kind]):.1f}%"

    text = (
        f"after {size.updates:,} updates the norm of the gradient is {span('PERLA')} of its first "
        f"value (PERLA, K = {CONVERGENCE_K}) and {span('centralised')} (centralised); "
        f"{span('decentralised')} (decentralised)"
    )
    shown: dict[str, Sequence[Score | float | int]] = {
        kind: np.mean(found, axis=0).tolist() for kind, found in norms.items()
    }
    return TheoremResult(
        holds,
        row("Theorem 6", text, holds),
        figures.against(
            counts,
            shown,
            xlabel="Updates",
            ylabel="Norm of the gradient of the return",
            log_y=True,
        ),
    )


def error_of_the_estimate(games: Sequence[Game], size: Size) -> TheoremResult:
    """Test that the error of the estimate falls as K^(−1/2); draw the Latin sampler's beside it."""
    slopes: list[float] = []
    shown: list[list[float]] = []
    for seed, game in enumerate(games):
        q = game.values
        errors = [
            random_games.error(game, q, Sampled(num_samples=k), size.repeats, seed)
            for k in ERROR_KS
        ]
        slopes.append(float(np.polyfit(np.log(ERROR_KS), np.log(errors), 1)[0]))
        if not shown:
            latin = [
                random_games.error(
                    game, q, Sampled(num_samples=k, sampler="latin"), size.repeats, seed
                )
                for k in LATIN_KS
            ]
            shown = [errors, latin]
    holds = all(abs(slope + 0.5) < SLOPE for slope in slopes)
    text = f"slopes in log K from {min(slopes):.3f} to {max(slopes):.3f}"
    return TheoremResult(
        holds,
        row("Error of order K^(−1/2)", text, holds),
        figures.against(
            list(ERROR_KS),
            {"iid": shown[0], "latin (the next prime)": shown[1]},
            xlabel="Joint actions sampled, K",
            ylabel="Root mean square error",
            log_y=True,
        ),
    )


def excess_of(estimates: np.ndarray, base: np.ndarray, blocks: int = 20) -> Score:
    """Return the excess of the variance of gradient estimates over that of `base`.

    Both are `[trajectory, parameter]`, from the same trajectories. The point is the mean over
    `blocks` of trajectories, and the interval is 1.96 standard errors either way.
    """
    pairs = zip(np.array_split(estimates, blocks), np.array_split(base, blocks), strict=True)
    found = [random_games.total_variance(a) - random_games.total_variance(b) for a, b in pairs]
    return around(float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(blocks)))


def around(point: float, error: float) -> Score:
    """Return an estimate with its 95% interval, from its standard error."""
    return Score(point, point - 1.96 * error, point + 1.96 * error)
