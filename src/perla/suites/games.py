"""Every method on the paper's matrix game as it grows, by what they learn from: its Figure 1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from matplotlib.figure import Figure

from perla import overgeneralisation, regimes
from perla.analysis import figures
from perla.config import tag, to_json
from perla.envs import matrix
from perla.methods.aggregators import Aggregator, Entropic, Max
from perla.methods.estimators import Exact, Sampled
from perla.methods.ppo import PPO
from perla.methods.recipes import RECIPES, Method, make
from perla.methods.td import TD
from perla.methods.values import Embedded
from perla.regimes import REGIMES, Regime
from perla.suites.experiment import Conduct, Findings, Part, Scale, Status, Verdict
from perla.suites.hope import BEST, world

Game = tuple[int, int]
"""N agents of |A| actions."""
Axis = Literal["agents", "actions"]
TITLES: dict[str, Axis] = {"Agents N, |A| = 3": "agents", "Actions |A|, N = 2": "actions"}

FEW, MOST = 0.1, 0.9
"""A method finds the best payoff if at least `MOST` of its seeds do, and does not if at most `FEW`
do."""
FITTED: tuple[matrix.Data, ...] = get_args(matrix.Data)
"""Regimes under which a critic is fitted beforehand."""
ENUMERATED = 2048
"""Joint actions of the others up to which a critic's aggregate is taken over all of them; beyond,
100 are drawn, as in the paper."""

HOPEFUL = (Entropic(eta=1.0), Max())
METHODS = (
    *(name for name in RECIPES if not name.endswith("a2c")),
    *(f"perla-ippo {tag(aggregator)}" for aggregator in HOPEFUL),
)
"""What is compared: algorithms, PERLA's with the mean and with the hopeful aggregators."""

ON_POLICY: dict[str, Any] = {
    "copies": 32, "horizon": 1, "hidden": 64, "actor": "mlp", "normalise_rewards": False,
}  # fmt: skip
"""What actor-critic methods have different from their defaults."""
REPLAYING = ON_POLICY | {"buffer": 5000, "batch": 32, "updates": 4, "lr": 2e-3, "gamma": 0.0}
"""What replaying methods have: as many gradient steps for a collection as PPO's passes make.
Nothing follows upon a game's one step, so nothing of that need be kept."""


def config(method: str, game: Game) -> Method:
    """The settings of a method: an algorithm's name and, of PERLA's, an aggregator's."""
    algo, *words = method.split()
    learner = make(algo)
    if not isinstance(learner, PPO):
        return learner.replace(**REPLAYING)
    if words:
        (aggregator,) = (each for each in HOPEFUL if tag(each) == words[0])
        value = Embedded(
            form="action-value", fit="joint", estimator=estimator(game), aggregator=aggregator
        )
        learner = learner.replace(value=value)
    return learner.replace(**ON_POLICY)


def estimator(game: Game) -> Exact | Sampled:
    """How an aggregate is taken over the others' joint actions."""
    agents, actions = game
    return Exact() if actions ** (agents - 1) <= ENUMERATED else Sampled(k=100)


class Size(NamedTuple):
    """How much is computed."""

    seeds: int
    collections: int
    agents: tuple[int, ...]
    """N, with 3 actions; the smallest first."""
    actions: tuple[int, ...]
    """|A|, of 2 agents."""
    methods: tuple[str, ...] = METHODS

    def axis(self, name: Axis) -> list[Game]:
        """The games along an axis; the first one is on both."""
        if name == "agents":
            return [(n, 3) for n in self.agents]
        return [(2, a) for a in self.actions]

    @property
    def games(self) -> list[Game]:
        """All of them."""
        return list(dict.fromkeys(self.axis("agents") + self.axis("actions")))


SIZES: dict[Scale, Size] = {
    "smoke": Size(2, 20, (2,), (3,), ("ippo", "perla-ippo max", "vdn")),
    "quick": Size(5, 500, (2, 5), (3, 15)),
    "paper": Size(10, 500, (2, 3, 4, 5, 6, 10, 15, 20), (3, 6, 9, 12, 15)),
}


class Claim(NamedTuple):
    """One of the figure's statements: that these methods find the best payoff, or lose it."""

    text: str
    methods: tuple[str, ...]
    finds: bool
    axis: Axis
    """Along which it is said: of all games if they find it, of the largest if they lose it."""
    first: bool = False
    """It is said of the first game alone."""


PERLA = ("perla-ippo", "perla-mappo")
BASELINES = tuple(name for name in METHODS if not name.startswith("perla"))
CLAIMS = (
    Claim("IPPO, MAPPO find 8 at N = 2, |A| = 3", ("ippo", "mappo"), True, "agents", first=True),
    Claim("QPLEX, WQMIX find 8 there", ("qplex", "ow-qmix", "cw-qmix"), True, "agents", first=True),
    Claim("MAIC finds 8 there", ("maic", "maic-qplex"), True, "agents", first=True),
    Claim("the baselines lose it as N grows", BASELINES, False, "agents"),
    Claim("the baselines lose it as |A| grows", BASELINES, False, "actions"),
    Claim("PERLA keeps it as N grows", PERLA, True, "agents"),
    Claim("PERLA keeps it as |A| grows", PERLA, True, "actions"),
)
"""What Figure 1 says."""


class Cell(NamedTuple):
    """What the seeds of a method earn in the end, in one game under one regime."""

    method: str
    regime: Regime
    game: Game
    earned: list[float]

    @property
    def found(self) -> float:
        """The share of the seeds that find the best payoff."""
        return sum(paid == BEST for paid in self.earned) / len(self.earned)

    @property
    def text(self) -> str:
        """The mean, and how many seeds find the best payoff."""
        count = sum(paid == BEST for paid in self.earned)
        return f"{np.mean(self.earned):.1f} ({count})"


def compute(scale: Scale, conduct: Conduct) -> Findings:
    """Every method on every game, under every regime that it can learn from."""
    size = SIZES[scale]
    # What takes longest first, so that processes end together.
    todo = [
        (method, game, data)
        for game in sorted(size.games, reverse=True)
        for method in size.methods
        for data in shares(method)
    ]
    earned = conduct.recall([part(*each, size) for each in todo])
    found = [
        Cell(method, regime, game, paid)
        for (method, game, data), paids in zip(todo, earned, strict=True)
        for regime, paid in zip(data, paids, strict=True)
    ]
    found.sort(key=lambda cell: size.games.index(cell.game))
    claims = [judge(claim, regime, found, size) for claim in CLAIMS for regime in REGIMES]
    claims = [row for row in claims if row]
    verdicts = [row["verdict"] for row in claims]
    status: Status = (
        "holds" if set(verdicts) == {"holds"}
        else "does not hold" if set(verdicts) == {"does not hold"}
        else "holds in part"
    )  # fmt: skip
    counts = ", ".join(
        f"{verdicts.count(word)} {word}" for word in ("holds", "holds in part", "does not hold")
    )
    pictures: dict[str, Figure] = {each: picture(each, found, size) for each in REGIMES}
    reason = f"of {len(claims)} claims under the regimes they can be tested in: {counts}"
    return Findings(Verdict(status, reason), rows(found, size), pictures, claims)


def shares(method: str) -> list[tuple[Regime, ...]]:
    """The regimes that a method can learn from, those together that are computed at once.

    PERLA's critic is of the others' actions, whoever chose them: under data that are not its own it
    is fitted to them first, and the policies then climb its aggregate. The other actor-critic
    methods learn from nothing but what they play.
    """
    settings = config(method, (2, 3))
    if not isinstance(settings, PPO):
        return [REGIMES]
    return [("on-policy",), FITTED] if isinstance(settings.value, Embedded) else [("on-policy",)]


def part(method: str, game: Game, data: tuple[Regime, ...], size: Size) -> Part:
    """A method on a game, under such data."""
    settings, where = config(method, game), "N = {}, |A| = {}".format(*game)
    if data == FITTED:
        assert isinstance(settings, PPO)
        assert isinstance(settings.value, Embedded)
        aggregator = settings.value.aggregator
        depends = [repr(aggregator), repr(estimator(game)), *game, size.seeds]
        name = f"a fitted critic's {tag(aggregator)}, {where}"
        return Part(name, depends, partial(climb, aggregator, game, size))
    if isinstance(settings, TD):
        half = max(1, size.collections * settings.copies // 2)
        settings = settings.replace(epsilon_steps=half)
    depends = [to_json(settings).decode(), *game, data, size.seeds, size.collections]
    name = f"{method}, {where}"
    return Part(name, depends, partial(learn, settings, game, data, size))


def learn(settings: Method, game: Game, data: tuple[Regime, ...], size: Size) -> list[list[float]]:
    """What the seeds of a method earn in the end, under each of such data."""
    earned = regimes.outcomes(
        world(game), settings, data, seeds=size.seeds, collections=size.collections
    )
    return earned.tolist()


def climb(aggregator: Aggregator, game: Game, size: Size) -> list[list[float]]:
    """What the seeds of policies earn that climb an aggregate of a fitted critic, whichever
    method's they are, under each of the data that it is fitted to."""
    earned = overgeneralisation.outcomes(
        world(game), aggregator, estimator=estimator(game), data=FITTED, seeds=size.seeds
    )
    return earned.tolist()


def judge(claim: Claim, regime: Regime, cells: Sequence[Cell], size: Size) -> dict[str, str]:
    """A claim under a regime; nothing where none of its methods can learn from it."""
    games = size.axis(claim.axis)
    games = games[:1] if claim.first else games if claim.finds else games[-1:]
    found = {
        name: [
            cell.found
            for game in games
            for cell in cells
            if (cell.method, cell.regime, cell.game) == (name, regime, game)
        ]
        for name in claim.methods
    }
    found = {name: shares for name, shares in found.items() if shares}
    if not found:
        return {}
    worst = {name: min(shares) for name, shares in found.items()}
    right = [share >= MOST if claim.finds else share <= FEW for share in worst.values()]
    return {
        "claim": claim.text,
        "regime": regime,
        "found": ", ".join(f"{name} {share:.0%}" for name, share in worst.items()),
        "verdict": "holds" if all(right) else "holds in part" if any(right) else "does not hold",
    }


def rows(cells: Sequence[Cell], size: Size) -> list[dict[str, str]]:
    """A line for each method and regime, a column for each game."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for cell in cells:
        line = lines.setdefault(
            (cell.regime, cell.method), {"regime": cell.regime, "method": cell.method}
        )
        line["N = {}, |A| = {}".format(*cell.game)] = cell.text
    order = sorted(lines, key=lambda key: (REGIMES.index(key[0]), size.methods.index(key[1])))
    return [lines[key] for key in order]


def picture(regime: Regime, cells: Sequence[Cell], size: Size) -> Figure:
    """What every method earns along both axes."""
    cells = [cell for cell in cells if cell.regime == regime]
    methods = [name for name in size.methods if any(cell.method == name for cell in cells)]
    table = {(cell.method, cell.game): float(np.mean(cell.earned)) for cell in cells}
    panels = {}
    for title, axis in TITLES.items():
        games = size.axis(axis)
        labels = [str(game[0] if axis == "agents" else game[1]) for game in games]
        panels[title] = labels, [[table[name, game] for game in games] for name in methods]
    return figures.heat(methods, panels, label=f"Payoff of the greedy policies, {regime}")
