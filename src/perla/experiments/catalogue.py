"""Every experiment of the paper, as data.

The paper's budgets are in part unstated; ours are said here. At scale `paper` the methods have the
paper's settings (preset `paper-lbf`, the same for all), at `quick` those that learn fastest here
(preset `default`) on fewer steps, and `smoke` only shows that everything works. All methods of an
experiment have equal budgets. The paper evaluates with sampled actions, as EPyMARL does; so do we.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perla.experiments import figures, verdicts
from perla.experiments.experiment import SCALES, Calculation, Conduct, Experiment, Findings, Scale
from perla.suites.suite import Grid, Scalar, Suite

FOUR = ("ippo", "mappo", "perla-ippo", "perla-mappo")

MAPS = tuple(
    f"lbf:Foraging-{name}-v2"
    for name in (
        "5x5-2p-1f", "5x5-2p-1f-coop", "5x5-2p-2f", "8x8-2p-2f-coop", "8x8-3p-3f",
        "10x10-5p-1f-coop", "10x10-3p-5f", "10x10-5p-3f", "10x10-8p-1f-coop", "15x15-8p-1f-coop",
    )
)  # fmt: skip
"""The ten maps of the paper's appendix E.1."""

TABLE_3: dict[str, tuple[Scalar, ...]] = {
    "hidden_size": (64, 128, 256),
    "lr": (3e-4, 5e-4),
    "actor_network": ("mlp", "gru"),
    "normalize_rewards": (False, True),
    "ent_coef": (1e-3, 1e-2, 1e-1),
    "target": ("hard", "soft"),
    "n_step": (5, 10),
    "num_samples": (10, 100),
}
"""The paper's search."""
TABLE_4: dict[str, Scalar] = {
    "hidden_size": 256,
    "lr": 5e-4,
    "actor_network": "mlp",
    "normalize_rewards": False,
    "ent_coef": 1e-3,
    "target": "soft",
    "n_step": 10,
    "num_samples": 100,
}
"""What it found."""

PAPER_STEPS = 2_000_000
"""Each seed's steps at scale `paper`; the paper does not say how many it had."""

SMALL = {"hidden_size": 8, "num_envs": 2, "rollout_length": 8, "update_epochs": 1}
"""Settings that show that everything works, and teach nothing."""


def suites(
    name: str,
    *,
    steps: int,
    quick: Mapping[str, Any] | None = None,
    smoke: Mapping[str, Any] | None = None,
    **grid: Any,
) -> dict[Scale, Suite]:
    """An experiment's suites: `grid` at scale `paper`; `quick` takes `steps` of each seed, and
    both smaller scales may have parts of the grid different."""
    grids: dict[Scale, dict[str, Any]] = {
        "paper": {
            "preset": "paper-lbf", "steps": PAPER_STEPS, "seeds": 3, "num_evaluations": 40,
            "eval_episodes": 100,
        } | grid,
        "quick": grid | {"steps": steps, "seeds": 5, "num_evaluations": 20} | dict(quick or {}),
        "smoke": grid | {
            "steps": 64, "seeds": 3, "num_evaluations": 2, "eval_episodes": 2, "absolute_episodes": 2,
        } | dict(smoke or {}),
    }  # fmt: skip
    small = grids["smoke"]
    small["settings"] = SMALL | small.get("settings", {})
    return {scale: Suite(name=f"{name}-{scale}", grids=(Grid(**grids[scale]),)) for scale in SCALES}


def compute_theory(scale: Scale, conduct: Conduct) -> Findings:
    """The theorems; JAX is imported only for them."""
    from perla.experiments.theory import report

    return report.compute(scale, conduct)


def compute_games(scale: Scale, conduct: Conduct) -> Findings:
    """Every method on matrix games; JAX is imported only for them."""
    from perla.experiments.matrix import figure1

    return figure1.compute(scale, conduct)


def compute_hope(scale: Scale, conduct: Conduct) -> Findings:
    """The aggregates on matrix games; JAX is imported only for them."""
    from perla.experiments.matrix import aggregators

    return aggregators.compute(scale, conduct)


LBF = {"env": MAPS, "algo": FOUR}
QUICK_MAPS = (MAPS[3], MAPS[4], MAPS[6])
SMOKE_MAPS = (MAPS[1],)

EXPERIMENTS: dict[str, Experiment | Calculation] = {
    "lbf": Experiment(
        figure="Fig. 2, 9, 10",
        claim="On foraging PERLA-IPPO and PERLA-MAPPO learn faster and end better than IPPO and "
        "MAPPO.",
        rule="Each PERLA method is ahead of its base, in the area under the curve or the final "
        "return, and behind in neither (95% intervals apart, over all maps together). In part: "
        "one is, and the other is not behind.",
        suites=suites(
            "lbf", **LBF, steps=150_000, quick={"env": QUICK_MAPS}, smoke={"env": SMOKE_MAPS}
        ),
        judge=verdicts.judge_pairs(verdicts.PAIRS),
        draw=figures.curves,
    ),
    "failures": Experiment(
        figure="Fig. 4",
        claim="PERLA-IPPO has none of the failures (final return below 0.1) that IPPO has, and "
        "fewer than MAPPO.",
        rule="IPPO fails on some map, PERLA-IPPO on none. In part: on fewer than IPPO and on no "
        "more than MAPPO. Not tested: IPPO fails nowhere.",
        suites=suites(
            "failures", **LBF, steps=150_000, quick={"env": QUICK_MAPS}, smoke={"env": SMOKE_MAPS}
        ),
        judge=verdicts.judge_failures,
        draw=figures.failures,
    ),
    "full-observability": Experiment(
        figure="Fig. 5",
        claim="Where every agent sees the whole state, PERLA-IPPO still ends more than 15% above "
        "IPPO.",
        rule="PERLA-IPPO is ahead of IPPO (as in lbf) and its final return is more than 15% "
        "higher. In part: ahead by less. These maps have full sight: what an agent sees is the "
        "state.",
        suites=suites(
            "full-observability",
            env=MAPS,
            algo=("ippo", "mappo", "perla-ippo"),
            steps=150_000,
            quick={"env": QUICK_MAPS},
            smoke={"env": SMOKE_MAPS},
        ),
        judge=verdicts.judge_full_observability,
        draw=figures.curves,
    ),
    "scaling": Experiment(
        figure="Fig. 6",
        claim="PERLA-IPPO's gain over IPPO and MAPPO grows with the number of agents, to more than "
        "1000% with 8.",
        rule="The gain in final return never falls as N grows and its interval at the largest N is "
        "above 0, over both, and there it is more than 1000%. In part: it grows over one of them, "
        "or to less.",
        suites=suites(
            "scaling",
            env=tuple(f"lbf:Foraging-10x10-{n}p-1f-coop-v2" for n in range(2, 9)),
            algo=("ippo", "mappo", "perla-ippo"),
            steps=60_000,
            # Larger maps are not learnt by anybody in so few steps.
            quick={"env": tuple(f"lbf:Foraging-6x6-{n}p-1f-coop-v2" for n in (2, 3, 5, 8))},
            smoke={"env": tuple(f"lbf:Foraging-5x5-{n}p-1f-coop-v2" for n in (2, 3))},
        ),
        judge=verdicts.judge_scaling,
        draw=figures.scaling,
    ),
    "variance": Experiment(
        figure="Fig. 7",
        claim="The cumulative TD error of PERLA-IPPO and PERLA-MAPPO is below that of IPPO and "
        "MAPPO.",
        rule="Each PERLA method's cumulative TD error is below its base's, 95% intervals over 5 "
        "seeds apart. In part: one is, and the other is not above.",
        suites=suites(
            "variance",
            env="lbf:Foraging-20x20-10p-3f-v2",
            algo=FOUR,
            seeds=5,
            steps=20_000,
            smoke={"env": SMOKE_MAPS},
        ),
        judge=verdicts.judge_variance,
        draw=figures.variance,
    ),
    "samples": Experiment(
        figure="Fig. 8",
        claim="More samples learn better: K = 100 has a larger area under the curve than K = 5; "
        "K = 250 has no larger one than K = 100.",
        rule="The interval of K = 100 lies above that of K = 5, and that of K = 250 not above "
        "that of K = 100. In part: only the first.",
        suites=suites(
            "samples",
            env=tuple(
                f"lbf:Foraging-{name}-v2"
                for name in ("5x5-2p-1f-coop", "10x10-5p-3f", "10x10-3p-5f")
            ),
            algo="perla-ippo",
            settings={"estimator": "sampled", "num_samples": (5, 10, 50, 100, 250)},
            steps=30_000,
            quick={"seeds": 3},
            smoke={
                "env": "lbf:Foraging-5x5-2p-1f-coop-v2",
                "settings": {"estimator": "sampled", "num_samples": (2, 5, 7)},
            },
        ),
        judge=verdicts.judge_samples,
        draw=figures.samples,
    ),
    "grid": Experiment(
        figure="Tables 3 and 4",
        claim="Of the grid of Table 3, the settings of Table 4 are best.",
        rule="Table 4's combination has the largest area under the curve. In part: its 95% "
        "interval reaches the best one's.",
        suites=suites(
            "grid",
            env=("lbf:Foraging-8x8-2p-2f-coop-v2", "lbf:Foraging-10x10-3p-5f-v2"),
            algo="perla-ippo",
            settings=TABLE_3,
            steps=60_000,
            quick={
                "env": "lbf:Foraging-5x5-2p-1f-coop-v2",
                "settings": {"estimator": "sampled"}
                | {
                    name: TABLE_3[name]
                    for name in ("actor_network", "normalize_rewards", "num_samples")
                },
                "seeds": 3,
            },
            smoke={
                "env": "lbf:Foraging-5x5-2p-1f-coop-v2",
                "settings": {
                    "actor_network": TABLE_3["actor_network"],
                    "normalize_rewards": (False, True),
                },
            },
        ),
        judge=verdicts.judge_choice(TABLE_4),
        draw=figures.grid,
    ),
    "theory": Calculation(
        figure="Theorems 1, 3, 4 and 5",
        claim="Averaging over K joint actions lowers the critic's variance as 1/K (Theorem 1) and "
        "leaves the expected policy gradient as it was (3); by how much its variance exceeds the "
        "decentralised one's is bounded, for PERLA by 1/K of the centralised bound (4, 5).",
        rule="On random games whose values are known: every variance and mean within "
        f"{verdicts.SURE} standard errors of what the theorem says, every excess below its bound, "
        f"and the error falling with slope −1/2 ± {verdicts.SLOPE} in log K. In part: some do.",
        compute=compute_theory,
        takes="it takes half a minute at smoke and four at quick",
    ),
    "matrix": Calculation(
        figure="Fig. 1",
        claim="On the matrix game IPPO, MAPPO, QPLEX, WQMIX and MAIC find the best joint action at "
        "first and lose it as agents or actions are added; PERLA keeps it to the largest games.",
        rule="Each part of it under every regime of data that its methods can learn from, by the "
        "share of seeds whose greedy policies earn 8 in the end: at least 90% where methods are "
        "said to find it; at most 10% where they are said to lose it, of the methods that find it "
        "at first. In part: of some methods.",
        compute=compute_games,
        takes="it takes half a minute at smoke, eight at quick and an hour and a half at paper",
    ),
    "aggregators": Calculation(
        figure="Beyond the paper; its Table 1's game and what it scales to",
        claim="Given a critic that was shown every payoff equally often, policies that climb its "
        "mean over the others stay with the safe joint action of the matrix games, and those that "
        "climb a maximum or an entropic average find the best one.",
        rule="Of the seeds at least 95% reach 8 by the maximum and the entropic average, and at "
        "most 5% by the mean, on all games whose joint actions are enumerated.",
        compute=compute_hope,
        takes="it takes a few seconds at smoke and under a minute at quick",
    ),
}
"""What `perla reproduce` knows."""
