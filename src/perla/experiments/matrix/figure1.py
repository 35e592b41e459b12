"""Every method on the paper's matrix game as it grows, by what they learn from: its Figure 1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from matplotlib.figure import Figure

from perla.analysis import figures
from perla.config import tag, to_json
from perla.envs import matrix
from perla.experiments.experiment import Conduct, Findings, Part, Scale, Status, Verdict
from perla.experiments.matrix import data_regimes, fitted_critic
from perla.experiments.matrix.aggregators import BEST, world
from perla.experiments.matrix.data_regimes import REGIMES, Regime
from perla.methods.aggregators import Aggregator, Entropic, Max, Mean
from perla.methods.estimators import Exact, Sampled
from perla.methods.ppo import PPO
from perla.methods.recipes import RECIPES, Method, make
from perla.methods.td import TD
from perla.methods.values import Embedded

Game = tuple[int, int]
"""N agents of |A| actions."""
Axis = Literal["agents", "actions"]
TITLES: dict[str, Axis] = {"Agents N, |A| = 3": "agents", "Actions |A|, N = 2": "actions"}

FEW, MOST = 0.1, 0.9
"""A method finds the best payoff if at least `MOST` of its seeds do, and does not if at most `FEW`
do."""
VERDICTS: tuple[Status, ...] = get_args(Status)
"""What can become of a claim."""
DATA: tuple[matrix.DataDistribution, ...] = get_args(matrix.DataDistribution)
"""Regimes in which nobody chooses what is played."""
ENUMERATED = 2048
"""Joint actions of the others up to which the aggregates that are compared are taken over all of
them; beyond, 100 are drawn, as in the paper."""

AGGREGATORS: tuple[Aggregator, ...] = (Mean(), Entropic(eta=1.0), Max())
FITTED = tuple(f"perla-fitted {tag(aggregator)}" for aggregator in AGGREGATORS)
METHODS = (
    *(name for name in RECIPES if not name.endswith("a2c")),
    *(f"perla-ippo {tag(aggregator)}" for aggregator in AGGREGATORS),
    *FITTED,
)
"""What is compared: algorithms as they are; PERLA-IPPO with Q(aᵢ, a₋ᵢ) for its critic and one
aggregate of it or another; and, as such a critic does not ask who chose the others' actions,
policies that climb one which was fitted to data that are not their own."""

ON_POLICY: dict[str, Any] = {
    "num_envs": 32, "rollout_length": 1, "hidden_size": 64, "actor_network": "mlp", "normalize_rewards": False,
}  # fmt: skip
"""What actor-critic methods have different from their defaults."""
REPLAYING = ON_POLICY | fitted_critic.FIT._asdict() | {"gamma": 0.0}
"""What replaying methods have, and a critic that is fitted: as many gradient steps for a collection
as PPO's passes make. Nothing follows upon a game's one step, so nothing of that need be kept."""


def config(method: str, game: Game) -> Method:
    """The settings of a method: an algorithm's name and, of PERLA-IPPO, an aggregator's."""
    algo, *words = method.split()
    learner = make(algo)
    if not isinstance(learner, PPO):
        return learner.replace(**REPLAYING)
    if words:
        (aggregator,) = (each for each in AGGREGATORS if tag(each) == words[0])
        value = Embedded(
            critic_form="action-value",
            regress="joint",
            estimator=estimator(game),
            aggregator=aggregator,
        )
        learner = learner.replace(value=value)
    return learner.replace(**ON_POLICY)


def estimator(game: Game) -> Exact | Sampled:
    """How an aggregate is taken over the others' joint actions."""
    agents, actions = game
    return Exact() if actions ** (agents - 1) <= ENUMERATED else Sampled(num_samples=100)


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
    "smoke": Size(2, 20, (2,), (3,), ("ippo", "perla-ippo max", FITTED[0], "vdn")),
    "quick": Size(4, 500, (2, 5), (3, 15)),
    "paper": Size(10, 500, (2, 3, 4, 5, 6, 10, 15, 20), (3, 6, 9, 12, 15)),
}


class Claim(NamedTuple):
    """One of the figure's statements: that these methods find the best payoff, or lose it."""

    text: str
    methods: tuple[str, ...]
    finds: bool
    axis: Axis
    """Along which it is said: of all games if they find it; if they lose it, of the largest, and of
    those that find it in the first."""
    first: bool = False
    """It is said of the first game alone."""


PERLA = ("perla-ippo", "perla-mappo", FITTED[0])
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
    todo = [(methods, game) for game in size.games for methods in together(size)]
    earned = conduct.recall([part(*each, size) for each in todo])
    found = [
        Cell(method, regime, game, paid)
        for (methods, game), paids in zip(todo, earned, strict=True)
        for (method, regime), paid in zip(
            product(methods, regimes_of(methods[0])), paids, strict=True
        )
    ]
    claims = [judge(claim, regime, found, size) for claim in CLAIMS for regime in REGIMES]
    claims = [row for row in claims if row]
    verdicts = [row["verdict"] for row in claims]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in VERDICTS if word in verdicts)
    pictures: dict[str, Figure] = {each: picture(each, found, size) for each in REGIMES}
    reason = f"of {len(claims)} claims under the regimes they can be tested in: {counts}"
    return Findings(Verdict(overall(verdicts), reason), rows(found, size), pictures, claims)


def together(size: Size) -> list[tuple[str, ...]]:
    """The methods, those together that are computed at once: all that climb a fitted critic."""
    fitted = tuple(method for method in size.methods if method in FITTED)
    alone = ((method,) for method in size.methods if method not in FITTED)
    return [*alone, fitted] if fitted else [*alone]


def regimes_of(method: str) -> tuple[Regime, ...]:
    """The regimes that a method can learn from: actor-critics have what they play alone."""
    if method in FITTED:
        return DATA
    return ("on-policy",) if isinstance(config(method, (2, 3)), PPO) else REGIMES


def part(methods: tuple[str, ...], game: Game, size: Size) -> Part:
    """Such methods on a game."""
    where = "N = {}, |A| = {}".format(*game)
    if methods[0] in FITTED:
        aggregators = [AGGREGATORS[FITTED.index(method)] for method in methods]
        known = [repr(aggregators), repr(estimator(game)), fitted_critic.FIT._asdict()]
        depends = [*known, *game, size.seeds, size.collections]
        fitting = partial(climb, aggregators, game, size)
        return Part(f"fitted critics, {where}", depends, fitting, weight=game[0])
    (method,) = methods
    settings, data = config(method, game), regimes_of(method)
    if isinstance(settings, TD):
        half = max(1, size.collections * settings.num_envs // 2)
        settings = settings.replace(epsilon_decay_steps=half)
    depends = [to_json(settings).decode(), *game, data, size.seeds, size.collections]
    learning = partial(learn, settings, game, data, size)
    return Part(f"{method}, {where}", depends, learning, weight=game[0] * len(data))


def learn(settings: Method, game: Game, data: tuple[Regime, ...], size: Size) -> list[list[float]]:
    """What the seeds of a method earn in the end, under each of such data."""
    earned = data_regimes.outcomes(
        world(game), settings, data, seeds=size.seeds, collections=size.collections
    )
    return earned.tolist()


def climb(aggregators: Sequence[Aggregator], game: Game, size: Size) -> list[list[float]]:
    """What the seeds of policies earn in the end that climb each of such aggregates of a fitted
    critic, under each of the data that it is fitted to."""
    earned = fitted_critic.outcomes(
        world(game),
        aggregators,
        estimator=estimator(game),
        data=DATA,
        seeds=size.seeds,
        collections=size.collections,
    )
    return earned.reshape(-1, size.seeds).tolist()


def judge(claim: Claim, regime: Regime, cells: Sequence[Cell], size: Size) -> dict[str, str]:
    """A claim under a regime; nothing where none of its methods can learn from it."""
    games = size.axis(claim.axis)[: 1 if claim.first else None]
    shares = {(cell.method, cell.game): cell.found for cell in cells if cell.regime == regime}
    found = {
        name: [shares[name, game] for game in games]
        for name in claim.methods
        if (name, games[0]) in shares
    }
    if not found:
        return {}
    if claim.finds:
        right = {name: min(each) >= MOST for name, each in found.items()}
        said = [f"{name} {min(each):.0%}" for name, each in found.items()]
    else:
        # What was never found cannot be lost.
        right = {name: each[-1] <= FEW for name, each in found.items() if each[0] >= MOST}
        said = [f"{name} {found[name][0]:.0%} → {found[name][-1]:.0%}" for name in right]
        never = ", ".join(name for name in found if name not in right)
        said += [f"not found at first by {never}"] if never else []
    return {
        "claim": claim.text,
        "regime": regime,
        "found": "; ".join(said),
        "verdict": overall("holds" if each else "does not hold" for each in right.values()),
    }


def overall(parts: Iterable[str]) -> Status:
    """The verdict on what has parts with such verdicts."""
    said = set(parts) - {"not tested"}
    tested = [word for word in VERDICTS if word in said]
    if not tested:
        return "not tested"
    return tested[0] if len(tested) == 1 else "holds in part"


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
