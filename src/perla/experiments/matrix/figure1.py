"""The paper's Figure 1: methods on growing matrix games, by the distribution of their data."""

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
from perla.experiments.experiment import Findings, Job, Options, Scale, Status, Verdict
from perla.experiments.matrix import data_distributions, fitted_critic
from perla.experiments.matrix.aggregators import BEST, make_game
from perla.experiments.matrix.data_distributions import DATA_DISTRIBUTIONS, DataDistribution
from perla.methods.aggregators import Aggregator, Entropic, Max, Mean
from perla.methods.estimators import FEW as LATIN
from perla.methods.estimators import Exact, Sampled
from perla.methods.method import Method
from perla.methods.ppo import PPO
from perla.methods.recipes import RECIPES, make
from perla.methods.td import TD
from perla.methods.values import Embedded

Game = tuple[int, int]
"""(N, |A|): N agents with |A| actions each."""
Axis = Literal["agents", "actions"]
TITLES: dict[str, Axis] = {"Agents N, |A| = 3": "agents", "Actions |A|, N = 2": "actions"}

FEW, MOST = 0.1, 0.9
"""A method finds the best payoff if at least the share `MOST` of its seeds does, and does not find
it if at most the share `FEW` does."""
VERDICTS: tuple[Status, ...] = get_args(Status)
"""The possible verdicts."""
OFF_POLICY: tuple[matrix.JointActionDistribution, ...] = get_args(matrix.JointActionDistribution)
"""The data distributions that do not depend on the policies."""
ENUMERATED = 2048
"""Largest number of the other agents' joint actions that is enumerated by the aggregators; beyond
it 100 are sampled, as in the paper."""
PAPERS = Sampled(num_samples=100)

AGGREGATORS: tuple[Aggregator, ...] = (Mean(), Entropic(eta=1.0), Max())
FITTED = tuple(f"perla-fitted {tag(aggregator)}" for aggregator in AGGREGATORS)
LATER = {"mat", "pqn-iql", "pqn-vdn"}
"""Methods that are no baselines of the paper."""
METHODS = (
    *(name for name in RECIPES if not name.endswith("a2c") and name not in LATER),
    *(f"perla-ippo {tag(aggregator)}" for aggregator in AGGREGATORS),
    *FITTED,
)
"""The methods of the comparison: algorithms with their default values; PERLA-IPPO with the critic
Q(aᵢ, a₋ᵢ) and each aggregator; and policies that ascend such a critic after it was fitted to
off-policy data, as it does not depend on the policy that chose the other agents' actions."""

ON_POLICY: dict[str, Any] = {
    "num_envs": 32, "rollout_length": 1, "hidden_size": 64, "actor_network": "mlp",
    "normalize_rewards": False,
}  # fmt: skip
"""Settings of actor-critic methods that differ from their defaults."""
REPLAYING = ON_POLICY | fitted_critic.FIT._asdict() | {"gamma": 0.0}
"""Settings of replay-based methods, and of fitted critics: as many gradient steps per collection as
PPO makes. As episodes have one step, γ = 0 leaves successor states out of the replay buffer."""


def config(method: str, game: Game) -> Method:
    """Return the settings of a method: an algorithm's name and, for PERLA-IPPO, an aggregator's."""
    algo, *aggregators = method.split()
    learner = make(algo)
    if not isinstance(learner, PPO):
        return learner.replace(**REPLAYING)
    if aggregators:
        (aggregator,) = (each for each in AGGREGATORS if tag(each) == aggregators[0])
        value = Embedded(
            critic_form="action-value",
            regress="joint",
            estimator=estimator(game),
            aggregator=aggregator,
        )
        learner = learner.replace(value=value)
    elif algo.startswith("perla-"):
        embedded = learner.value.replace(estimator=estimator(game, 100, LATIN))
        learner = learner.replace(value=embedded)
    return learner.replace(**ON_POLICY)


def estimator(
    game: Game, enumerated: int = ENUMERATED, otherwise: Sampled = PAPERS
) -> Exact | Sampled:
    """Return the estimator over the other agents' joint actions: exact up to so many of them."""
    agents, actions = game
    return Exact() if actions ** (agents - 1) <= enumerated else otherwise


class Size(NamedTuple):
    """The amount of computation at a scale."""

    seeds: int
    collections: int
    agents: tuple[int, ...]
    """N of the games with 3 actions, the smallest first."""
    actions: tuple[int, ...]
    """|A| of the games with 2 agents."""
    methods: tuple[str, ...] = METHODS

    def axis(self, name: Axis) -> list[Game]:
        """Return the games along an axis; the first one is on both axes."""
        if name == "agents":
            return [(n, 3) for n in self.agents]
        return [(2, a) for a in self.actions]

    @property
    def games(self) -> list[Game]:
        """All games."""
        return list(dict.fromkeys(self.axis("agents") + self.axis("actions")))


SIZES: dict[Scale, Size] = {
    "smoke": Size(2, 20, (2,), (3,), ("ippo", "perla-ippo max", FITTED[0], "vdn")),
    "quick": Size(4, 500, (2, 5), (3, 15)),
    "paper": Size(10, 500, (2, 3, 4, 5, 6, 10, 15, 20), (3, 6, 9, 12, 15)),
}


class Claim(NamedTuple):
    """A claim of the figure: these methods find the best payoff, or lose it."""

    text: str
    methods: tuple[str, ...]
    finds: bool
    axis: Axis
    """The axis of the claim. Methods find the best payoff in all of its games; or they lose it: of
    the methods that find it in the first game, none does in the largest."""
    first: bool = False
    """True if the claim is about the first game only."""


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
"""The claims of Figure 1."""


class GameResult(NamedTuple):
    """The final payoffs of a method in one game, with one data distribution."""

    method: str
    data: DataDistribution
    game: Game
    payoffs: list[float]
    """The payoff of every seed's greedy policies."""

    @property
    def share(self) -> float:
        """The share of seeds with the best payoff."""
        return sum(payoff == BEST for payoff in self.payoffs) / len(self.payoffs)

    @property
    def text(self) -> str:
        """The mean payoff, and the number of seeds with the best one."""
        count = sum(payoff == BEST for payoff in self.payoffs)
        return f"{np.mean(self.payoffs):.1f} ({count})"


def compute(scale: Scale, options: Options) -> Findings:
    """Test every method on every game, with every data distribution that it can learn from."""
    size = SIZES[scale]
    groups = [(methods, game) for game in size.games for methods in group_methods(size)]
    payoffs = options.cached([create_job(*group, size) for group in groups])
    results = [
        GameResult(method, data, game, by_seed)
        for (methods, game), by_case in zip(groups, payoffs, strict=True)
        for (method, data), by_seed in zip(
            product(methods, distributions_of(methods[0])), by_case, strict=True
        )
    ]
    claims = [judge(claim, data, results, size) for claim in CLAIMS for data in DATA_DISTRIBUTIONS]
    claims = [row for row in claims if row]
    verdicts = [row["verdict"] for row in claims]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in VERDICTS if word in verdicts)
    pictures: dict[str, Figure] = {
        data: picture(data, results, size) for data in DATA_DISTRIBUTIONS
    }
    reason = f"of {len(claims)} pairs of a claim and a data distribution that can test it: {counts}"
    return Findings(Verdict(overall(verdicts), reason), rows(results, size), pictures, claims)


def group_methods(size: Size) -> list[tuple[str, ...]]:
    """Group the methods by job: those with a fitted critic share one, as they share the critic."""
    fitted = tuple(method for method in size.methods if method in FITTED)
    others = ((method,) for method in size.methods if method not in FITTED)
    return [*others, fitted] if fitted else [*others]


def distributions_of(method: str) -> tuple[DataDistribution, ...]:
    """Return the data distributions that a method can learn from; actor-critics are on-policy."""
    if method in FITTED:
        return OFF_POLICY
    return ("on-policy",) if isinstance(config(method, (2, 3)), PPO) else DATA_DISTRIBUTIONS


def create_job(methods: tuple[str, ...], game: Game, size: Size) -> Job:
    """Create the job of a group of methods on a game."""
    where = "N = {}, |A| = {}".format(*game)
    if methods[0] in FITTED:
        aggregators = [AGGREGATORS[FITTED.index(method)] for method in methods]
        known = [repr(aggregators), repr(estimator(game)), fitted_critic.FIT._asdict()]
        depends = [*known, *game, size.seeds, size.collections]
        fitting = partial(compute_fitted, aggregators, game, size)
        return Job(f"fitted critics, {where}", depends, fitting, weight=game[0])
    (method,) = methods
    settings, data = config(method, game), distributions_of(method)
    if isinstance(settings, TD):
        half = max(1, size.collections * settings.num_envs // 2)
        settings = settings.replace(epsilon_decay_steps=half)
    depends = [to_json(settings).decode(), *game, data, size.seeds, size.collections]
    learning = partial(compute_learned, settings, game, data, size)
    return Job(f"{method}, {where}", depends, learning, weight=game[0] * len(data))


def compute_learned(
    settings: Method, game: Game, data: tuple[DataDistribution, ...], size: Size
) -> list[list[float]]:
    """Train a method; return the final payoff of every seed, for each data distribution."""
    payoffs = data_distributions.outcomes(
        make_game(game), settings, data, seeds=size.seeds, collections=size.collections
    )
    return payoffs.tolist()


def compute_fitted(aggregators: Sequence[Aggregator], game: Game, size: Size) -> list[list[float]]:
    """Fit critics; return the final payoff of every seed that ascends them, for each aggregator and
    data distribution."""
    payoffs = fitted_critic.outcomes(
        make_game(game),
        aggregators,
        estimator=estimator(game),
        data=OFF_POLICY,
        seeds=size.seeds,
        collections=size.collections,
    )
    return payoffs.reshape(-1, size.seeds).tolist()


def judge(
    claim: Claim, data: DataDistribution, results: Sequence[GameResult], size: Size
) -> dict[str, str]:
    """Judge a claim with one data distribution; empty where none of its methods can learn from it.

    The column of the data distribution is called `regime`, as in results that were published.
    """
    games = size.axis(claim.axis)[: 1 if claim.first else None]
    by_game = {(each.method, each.game): each.share for each in results if each.data == data}
    shares = {
        name: [by_game[name, game] for game in games]
        for name in claim.methods
        if (name, games[0]) in by_game
    }
    if not shares:
        return {}
    if claim.finds:
        true = {name: min(each) >= MOST for name, each in shares.items()}
        words = [f"{name} {min(each):.0%}" for name, each in shares.items()]
    else:
        # A method that does not find it at first cannot lose it.
        true = {name: each[-1] <= FEW for name, each in shares.items() if each[0] >= MOST}
        words = [f"{name} {shares[name][0]:.0%} → {shares[name][-1]:.0%}" for name in true]
        never = ", ".join(name for name in shares if name not in true)
        words += [f"not found at first by {never}"] if never else []
    return {
        "claim": claim.text,
        "regime": data,
        "found": "; ".join(words),
        "verdict": overall("holds" if each else "does not hold" for each in true.values()),
    }


def overall(verdicts: Iterable[str]) -> Status:
    """Combine the verdicts of several claims into one."""
    distinct = set(verdicts) - {"not tested"}
    tested = [word for word in VERDICTS if word in distinct]
    if not tested:
        return "not tested"
    return tested[0] if len(tested) == 1 else "holds in part"


def rows(results: Sequence[GameResult], size: Size) -> list[dict[str, str]]:
    """Return a table: a row for each data distribution and method, a column for each game."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for result in results:
        line = lines.setdefault(
            (result.data, result.method), {"regime": result.data, "method": result.method}
        )
        line["N = {}, |A| = {}".format(*result.game)] = result.text
    order = sorted(
        lines, key=lambda key: (DATA_DISTRIBUTIONS.index(key[0]), size.methods.index(key[1]))
    )
    return [lines[key] for key in order]


def picture(data: DataDistribution, results: Sequence[GameResult], size: Size) -> Figure:
    """Draw the mean payoff of every method along both axes, for one data distribution."""
    results = [result for result in results if result.data == data]
    methods = [name for name in size.methods if any(each.method == name for each in results)]
    table = {(each.method, each.game): float(np.mean(each.payoffs)) for each in results}
    panels = {}
    for title, axis in TITLES.items():
        games = size.axis(axis)
        labels = [str(game[0] if axis == "agents" else game[1]) for game in games]
        panels[title] = labels, [[table[name, game] for game in games] for name in methods]
    return figures.heat(methods, panels, label=f"Payoff of the greedy policies, {data}")
