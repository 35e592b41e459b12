"""Benchmark of marginal estimators in training: variance of the average and speed.

    python benchmarks/estimators.py noise|speed|analytic [--out benchmarks/estimators-noise.json]

`noise`: during training of PERLA-IPPO each estimator averages the same critic at the same states
repeatedly; rows have the mean squared error, and its ratio to that of 100 independent samples. The
average itself is the mean of all repetitions of 97 samples of the Latin sampler. `speed`:
steps per second of training on four maps, with methods in turn in every round; rows have medians
over rounds, and their ratio to the method without embedding. `analytic`: the same for the closed
forms, with 2 to 20 agents.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from perla.algos.values import create_value
from perla.envs.registry import make_env
from perla.loops.anakin import Trainer
from perla.loops.rollout import rollout
from perla.loops.seeds import SeedState
from perla.methods.estimators import Estimator, Gaussian, Sampled
from perla.methods.ppo import PPO
from perla.methods.recipes import RECIPES, make
from perla.methods.values import Multilinear, Network

MAPS = (
    "lbf:Foraging-8x8-2p-2f-coop-v2",
    "lbf:Foraging-10x10-3p-3f-v2",
    "lbf:Foraging-10x10-5p-3f-v2",
    "lbf:Foraging-15x15-8p-1f-coop-v2",
)
AGENTS = (2, 3, 5, 8, 12, 20)
"""Numbers of agents for the closed form."""
PAPERS = Sampled(num_samples=100)


def perla(base: str = "ippo", **settings: Any) -> PPO:
    """PERLA on `base`, whose value has other `settings`."""
    algo = f"perla-{base}"
    config = make(algo, value=RECIPES[algo].settings["value"].replace(**settings))
    assert isinstance(config, PPO)
    return config


def noise(env: str, stops: tuple[int, ...] = (1_000, 30_000, 100_000), repeats: int = 60):
    """Yield a row for each training step in `stops` and each estimator."""
    config = perla()
    trainer = Trainer(make_env(env), config, seeds=(0,), steps=400_000)

    @partial(jax.jit, static_argnums=1)
    def answers(state: SeedState, estimator: Estimator):
        learner = state.learner
        _, steps, _ = rollout(trainer.envs, learner.actor, state.runner_state, state.key, 8)
        context, _ = learner.critic.context(
            steps.observation, learner.critic_hidden_state, steps.is_first
        )
        value = create_value(config.value.replace(estimator=estimator), trainer.env.spec)

        def answer(key):
            return value.estimate(learner.critic, context, steps.policy, key).value

        return jax.lax.map(answer, jax.random.split(jax.random.key(0), repeats))

    population = trainer.init()
    for stop in stops:
        population, (metrics,) = trainer.advance(population, stop)
        latin = [Sampled(num_samples=k, sampler="latin") for k in (11, 17, 23, 47, 97)]
        values = {
            estimator: np.asarray(answers(population[0], estimator))
            for estimator in (PAPERS, *latin, Gaussian())
        }
        average = values[latin[-1]].mean(0)
        errors = {estimator: float(((q - average) ** 2).mean()) for estimator, q in values.items()}
        for estimator, error in errors.items():
            yield {
                "map": env,
                "step": metrics["step"],
                "estimator": str(estimator),
                "squared error": error,
                "of 100 independent": error / errors[PAPERS],
                "spread": metrics["spread"],
                "td_error": metrics["td_error"],
            }


PLAIN = {"critic_model": Network(action_fusion="first"), "estimator": PAPERS}
"""The paper's estimator with a plain network of all inputs."""


def speed(env: str, rounds: int = 5) -> Iterator[dict[str, Any]]:
    """Yield a row for each method: with defaults, in closed form, and plain as in the paper."""
    configs = {}
    for base in ("ippo", "mappo"):
        configs |= {
            base: make(base),
            f"perla-{base}": perla(base),
            f"perla-{base} multilinear": perla(base, critic_model=Multilinear()),
        }
    configs["perla-ippo plain K = 100"] = perla(**PLAIN)
    yield from race(env, configs, rounds)


def analytic(agents: int, rounds: int = 5) -> Iterator[dict[str, Any]]:
    """Yield a row for each method with this number of agents, PERLA in closed form."""
    configs = {}
    for base in ("ippo", "mappo"):
        configs |= {
            base: make(base),
            f"perla-{base}": perla(base),
            f"perla-{base} multilinear": perla(base, critic_model=Multilinear()),
        }
    yield from race(f"lbf:Foraging-20x20-{agents}p-3f-v2", configs, rounds)


def race(env: str, configs: dict[str, PPO], rounds: int) -> Iterator[dict[str, Any]]:
    """Train all methods in turn in every round; yield a row for each, relative to its base."""
    trainers = {
        name: Trainer(make_env(env), config, seeds=(0,), steps=10**6, eval_episodes=1)
        for name, config in configs.items()
    }
    # One update of the plain version takes longer than four of the others.
    steps = {name: 1 if "plain" in name else 4 * 1024 for name in trainers}
    initial = {name: trainer.export(trainer.init()) for name, trainer in trainers.items()}
    for trainer in trainers.values():
        trainer.compile()
    rates: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(rounds):
        for name, trainer in trainers.items():
            population = jax.block_until_ready(trainer.restore(initial[name]))
            start = time.perf_counter()
            _, (metrics,) = trainer.advance(population, steps[name])
            rates[name].append(metrics["step"] / (time.perf_counter() - start))
    medians = {name: statistics.median(rate) for name, rate in rates.items()}
    for name, rate in rates.items():
        base = "mappo" if "mappo" in name else "ippo"
        yield {
            "map": env,
            "method": name,
            "steps/s": medians[name],
            "slowest": min(rate),
            "fastest": max(rate),
            "of its base": medians[name] / medians[base],
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("noise", "speed", "analytic"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    measured = []
    benchmark, cases = {
        "noise": (noise, MAPS),
        "speed": (speed, MAPS),
        "analytic": (analytic, AGENTS),
    }[arguments.what]
    for case in cases:
        for row in benchmark(case):
            print(row, flush=True)
            measured.append(row)
    if arguments.out:
        arguments.out.write_text(json.dumps(measured, indent=1) + "\n")
