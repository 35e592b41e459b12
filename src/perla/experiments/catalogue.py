"""Catalogue of the paper's experiments, as data.

The paper leaves some of its budgets unstated; this file states ours. At scale `paper` methods have
the paper's settings (preset `paper-lbf`, the same for all). At `quick` they have the preset
`default`, which learns fastest here, and fewer steps. `smoke` only shows that the code works. All
methods of an experiment have equal budgets. Evaluations sample actions, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perla.experiments import figures, verdicts
from perla.experiments.experiment import SCALES, Calculation, Experiment, Findings, Options, Scale
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
"""The grid of the paper's search."""
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
"""The best settings of the paper's search."""

SMAC_MAPS = tuple(
    f"skirmish:{name}"
    for name in (
        "2m_vs_1z", "2s_vs_1sc", "so_many_baneling", "bane_vs_bane", "1c3s5z", "2s3z", "3m", "8m",
        "MMM", "2c_vs_64zg", "3s5z", "25m", "3s5z_vs_3s6z", "MMM2", "corridor",
    )
)  # fmt: skip
"""The fifteen maps of the paper's appendix F.1."""
SMAC_STEPS = 10_000_000
"""Environment steps of each seed on SMAC's maps at scale `paper`: those of Yu et al. (2022)."""
WIN_RATE = "win_rate"
"""The metric on SMAC's maps: the share of greedy episodes that are won."""

PAPER_STEPS = 2_000_000
"""Environment steps of each seed at scale `paper`; the paper does not state its own."""

SMALL = {"hidden_size": 8, "num_envs": 2, "rollout_length": 8, "update_epochs": 1}
"""Settings of the scale `smoke`: as small as possible."""


def suites(
    name: str,
    *,
    steps: int,
    quick: Mapping[str, Any] | None = None,
    smoke: Mapping[str, Any] | None = None,
    paper: Mapping[str, Any] | None = None,
    **grid: Any,
) -> dict[Scale, Suite]:
    """Create an experiment's suites, by scale.

    `grid` is that of the scale `paper`. At `quick` each seed has `steps` environment steps.
    `quick`, `smoke` and `paper` override entries of the grid at these scales.
    """
    grids: dict[Scale, dict[str, Any]] = {
        "paper": {
            "preset": "paper-lbf", "steps": PAPER_STEPS, "seeds": 3, "num_evaluations": 40,
            "eval_episodes": 100,
            "absolute_episodes": 320,
        } | grid | dict(paper or {}),
        "quick": grid | {
            "steps": steps, "seeds": 5, "num_evaluations": 20, "eval_episodes": 32,
            "absolute_episodes": 320,
        } | dict(quick or {}),
        "smoke": grid | {
            "steps": 64, "seeds": 3, "num_evaluations": 2, "eval_episodes": 2,
            "absolute_episodes": 2,
        } | dict(smoke or {}),
    }  # fmt: skip
    small = grids["smoke"]
    small["settings"] = SMALL | small.get("settings", {})
    return {scale: Suite(name=f"{name}-{scale}", grids=(Grid(**grids[scale]),)) for scale in SCALES}


def compute_theory(scale: Scale, options: Options) -> Findings:
    """Test the theorems. Only this imports JAX."""
    from perla.experiments.theory import report

    return report.compute(scale, options)


def compute_games(scale: Scale, options: Options) -> Findings:
    """Test every method on matrix games. Only this imports JAX."""
    from perla.experiments.matrix import figure1

    return figure1.compute(scale, options)


def compute_aggregators(scale: Scale, options: Options) -> Findings:
    """Test the aggregators on matrix games. Only this imports JAX."""
    from perla.experiments.matrix import aggregators

    return aggregators.compute(scale, options)


LBF: dict[str, Any] = {"env": MAPS, "algo": FOUR}
QUICK_MAPS = (MAPS[3], MAPS[4], MAPS[6])
SMOKE_MAPS = (MAPS[1],)

SMAC: dict[str, Any] = {
    "env": SMAC_MAPS,
    "algo": FOUR,
    "preset": "paper-smac",
    "seeds": 3,
    "eval_episodes": 32,
}
SMAC_SCALES: dict[str, Any] = {
    "steps": 500_000,
    "quick": {"preset": "skirmish", "seeds": 3, "num_evaluations": 10},
    "smoke": {"env": "skirmish:3m", "preset": "default"},
    "paper": {"steps": SMAC_STEPS},
}

EXPERIMENTS: dict[str, Experiment | Calculation] = {
    "lbf": Experiment(
        figure="Fig. 2, 9, 10",
        claim="On foraging PERLA-IPPO and PERLA-MAPPO learn faster and end better than IPPO and "
        "MAPPO.",
        rule="Each PERLA method is ahead of its base in the area under the curve or the final "
        "return, and behind in neither (95% intervals do not overlap, over all maps together). In "
        "part: one method is ahead, and the other is not behind.",
        suites=suites(
            "lbf", **LBF, steps=150_000, quick={"env": QUICK_MAPS}, smoke={"env": SMOKE_MAPS}
        ),
        judge=verdicts.judge_pairs(verdicts.PAIRS),
        draw=figures.curves(),
    ),
    "failures": Experiment(
        figure="Fig. 4",
        claim="PERLA-IPPO fails (final return below 0.1) on no map, where IPPO fails on some, and "
        "on fewer maps than MAPPO.",
        rule="IPPO fails on at least one map, PERLA-IPPO on none. In part: PERLA-IPPO fails on "
        "fewer maps than IPPO and on no more than MAPPO. Not tested: IPPO fails on none.",
        suites=suites(
            "failures", **LBF, steps=150_000, quick={"env": QUICK_MAPS}, smoke={"env": SMOKE_MAPS}
        ),
        judge=verdicts.judge_failures(),
        draw=figures.failures(),
    ),
    "smac": Experiment(
        figure="Fig. 3, 11, 12",
        claim="On SMAC's maps PERLA-IPPO and PERLA-MAPPO learn faster and end better than IPPO and "
        "MAPPO.",
        rule="Each PERLA method is ahead of its base in the area under the curve or the final win "
        "rate, and behind in neither (95% intervals do not overlap, over all maps together). In "
        "part: one method is ahead, and the other is not behind. The maps are those of skirmish, "
        "perla's own rules, unless --family smac plays StarCraft II.",
        suites=suites("smac", **SMAC, **SMAC_SCALES),
        judge=verdicts.judge_pairs(verdicts.PAIRS, WIN_RATE),
        draw=figures.curves(WIN_RATE),
        metric=WIN_RATE,
        families=("skirmish", "smac"),
    ),
    "failures-smac": Experiment(
        figure="Fig. 4, SMAC",
        claim="On SMAC's maps PERLA-IPPO fails (final win rate below 0.1) on no map, where IPPO "
        "fails on some, and on fewer maps than MAPPO.",
        rule="IPPO fails on at least one map, PERLA-IPPO on none. In part: PERLA-IPPO fails on "
        "fewer maps than IPPO and on no more than MAPPO. Not tested: IPPO fails on none. The runs "
        "are those of smac.",
        suites=suites("failures-smac", **SMAC, **SMAC_SCALES),
        judge=verdicts.judge_failures(WIN_RATE),
        draw=figures.failures(WIN_RATE),
        metric=WIN_RATE,
        families=("skirmish", "smac"),
    ),
    "full-observability": Experiment(
        figure="Fig. 5",
        claim="Under full observability PERLA-IPPO still ends more than 15% above IPPO.",
        rule="PERLA-IPPO is ahead of IPPO (as in lbf) and its final return is more than 15% "
        "higher. In part: it is ahead by less. On these maps every agent observes the state.",
        suites=suites(
            "full-observability",
            env=MAPS,
            algo=("ippo", "mappo", "perla-ippo"),
            steps=150_000,
            quick={"env": QUICK_MAPS},
            smoke={"env": SMOKE_MAPS},
        ),
        judge=verdicts.judge_full_observability,
        draw=figures.curves(),
    ),
    "scaling": Experiment(
        figure="Fig. 6",
        claim="PERLA-IPPO's gain over IPPO and MAPPO grows with the number of agents, to more than "
        "1000% with 8.",
        rule="Over both, the gain in final return never falls as N grows, its interval at the "
        "largest N is above 0, and there it exceeds 1000%. In part: it grows over one of them, "
        "or to less than 1000%.",
        suites=suites(
            "scaling",
            env=tuple(f"lbf:Foraging-10x10-{n}p-1f-coop-v2" for n in range(2, 9)),
            algo=("ippo", "mappo", "perla-ippo"),
            steps=60_000,
            # No method learns larger maps in so few steps.
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
        rule="Each PERLA method's cumulative TD error is below its base's (95% intervals over 5 "
        "seeds do not overlap). In part: one is below, and the other is not above.",
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
        claim="More samples improve learning up to a point: K = 100 has a larger area under the "
        "curve than K = 5, and K = 250 no larger one than K = 100.",
        rule="The interval of K = 100 lies above that of K = 5, and the interval of K = 250 not "
        "above that of K = 100. In part: only the first is true.",
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
        claim="The settings of Table 4 are the best of the grid of Table 3.",
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
        figure="Theorems 1, 3, 4, 5 and 6",
        claim="Averaging over K joint actions reduces the critic's variance as 1/K (Theorem 1) and "
        "does not change the expected policy gradient (3). The variance of the gradient in "
        "excess of the decentralised one is bounded, and PERLA's bound is 1/K of the centralised "
        "one (4, 5). The gradient of the return goes to zero where an actor-critic learns with "
        "PERLA's or the centralised estimate (6).",
        rule="On random games with known values every variance and mean is within "
        f"{verdicts.SURE} standard errors of the theorem's value, every excess is below its bound, "
        f"the error falls with slope −1/2 ± {verdicts.SLOPE} in log K, and the norm of the exact "
        f"gradient falls below {verdicts.VANISHED:.0%} of its first value. In part: some of these "
        "are true.",
        compute=compute_theory,
        takes="it takes a minute at smoke and six at quick",
    ),
    "matrix": Calculation(
        figure="Fig. 1",
        claim="On the smallest matrix game IPPO, MAPPO, QPLEX, WQMIX and MAIC find the best joint "
        "action; they lose it as the number of agents or actions grows. PERLA finds it on all "
        "games.",
        rule="Each single claim is tested with every data distribution that its methods can learn "
        "from, by the share of seeds whose final greedy policies earn 8. A method finds it with at "
        "least 90%; it loses it if it finds it on the smallest game and has at most 10% on the "
        "largest. In part: for some methods.",
        compute=compute_games,
        takes="it takes half a minute at smoke, eight at quick and an hour and a half at paper",
    ),
    "aggregators": Calculation(
        figure="Beyond the paper: the game of its Table 1 and larger ones",
        claim="With a critic that is fitted to payoff-balanced data, policies that ascend its mean "
        "over the other agents' actions converge to the safe joint action of the matrix games, and "
        "policies that ascend its maximum or entropic average find the best one.",
        rule="On all games whose joint actions are enumerated, at least 95% of the seeds reach 8 "
        "with the maximum and with the entropic average, and at most 5% with the mean.",
        compute=compute_aggregators,
        takes="it takes a few seconds at smoke and under a minute at quick",
    ),
}
"""The experiments of `perla reproduce`, by name."""
