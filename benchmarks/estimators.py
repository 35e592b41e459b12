"""What averaging over the others' actions costs, and how near to the exact average it comes.

    python benchmarks/estimators.py noise|speed [--out benchmarks/estimators-noise.json]

`noise`: while PERLA-IPPO trains, the same critic at the same states is averaged again and again by
every estimator; a row is the mean variance of its answers, and that relative to 100 independent
draws. `speed`: steps per second of training, all contenders in turn in every round, medians of the
rounds, and those relative to IPPO's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from perla.algos.values import estimate
from perla.envs.registry import make as make_env
from perla.loops.anakin import Progress, Trainer
from perla.loops.rollout import rollout
from perla.methods.estimators import Estimator, Sampled
from perla.methods.ppo import PPO
from perla.methods.recipes import PERLA_IPPO, make
from perla.methods.values import Multilinear, Network

MAPS = {
    "lbf:Foraging-8x8-2p-2f-coop-v2": 20_000,
    "lbf:Foraging-10x10-5p-3f-v2": 8_000,
    "lbf:Foraging-15x15-8p-1f-coop-v2": 5_000,
}
"""Map → steps that are timed."""
PAPERS = Sampled(k=100)


def perla(**settings: Any) -> PPO:
    """PERLA-IPPO whose value has other `settings`."""
    return make("perla-ippo", value=PERLA_IPPO["value"].replace(**settings))


def noise(env: str, stops: tuple[int, ...] = (1_000, 30_000, 100_000), repeats: int = 60):
    """A row for each moment of training and each estimator."""
    config = perla()
    trainer = Trainer(make_env(env), config, seeds=(0,), steps=400_000)

    @partial(jax.jit, static_argnums=1)
    def answers(progress: Progress, estimator: Estimator):
        learner = progress.learner
        _, steps, _ = rollout(trainer.copies, learner.actor, progress.scene, progress.key, 8)
        context, _ = learner.critic.context(steps.observation, learner.critic_memory, steps.fresh)
        value = config.value.replace(estimator=estimator)

        def answer(key):
            return estimate(value, learner.critic, context, steps.policy, key)

        keys = jax.random.split(jax.random.key(0), repeats)
        return jax.lax.map(lambda key: answer(key).value, keys), answer(keys[0]).spread.mean()

    population = trainer.init()
    for stop in stops:
        population, (metrics,) = trainer.advance(population, stop)
        scale = None
        for estimator in (PAPERS, *(Sampled(k=k, sampler="latin") for k in (11, 23, 47, 97))):
            values, spread = answers(population[0], estimator)
            variance = float(np.var(np.asarray(values), axis=0, ddof=1).mean())
            scale = scale or variance
            yield {
                "map": env,
                "step": metrics["step"],
                "estimator": str(estimator),
                "variance": variance,
                "of 100 independent": variance / scale,
                "spread": float(spread),
                "td_error": metrics["td_error"],
            }


def speed(env: str, rounds: int = 5):
    """A row for each method."""
    steps = MAPS[env]
    trainers = {
        name: Trainer(make_env(env), config, seeds=(0,), steps=steps, eval_episodes=4)
        for name, config in {
            "ippo": make("ippo"),
            "perla-ippo": perla(),
            "perla-ippo, joins first": perla(interaction=Network(joins="first")),
            "perla-ippo, 100 independent": perla(estimator=PAPERS),
            "perla-ippo, multilinear": perla(interaction=Multilinear()),
        }.items()
    }
    fresh = {name: trainer.export(trainer.init()) for name, trainer in trainers.items()}
    for trainer in trainers.values():
        trainer.compile()
    rates: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(rounds):
        for name, trainer in trainers.items():
            population = jax.block_until_ready(trainer.restore(fresh[name]))
            start = time.perf_counter()
            _, (metrics,) = trainer.advance(population, steps)
            rates[name].append(metrics["step"] / (time.perf_counter() - start))
    ippos = statistics.median(rates["ippo"])
    for name, rate in rates.items():
        yield {
            "map": env,
            "method": name,
            "steps/s": statistics.median(rate),
            "slowest": min(rate),
            "fastest": max(rate),
            "of ippo": statistics.median(rate) / ippos,
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("noise", "speed"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    measured = []
    for env in MAPS if arguments.what == "speed" else list(MAPS)[1:]:
        for row in speed(env) if arguments.what == "speed" else noise(env):
            print(row, flush=True)
            measured.append(row)
    if arguments.out:
        arguments.out.write_text(json.dumps(measured, indent=1) + "\n")
