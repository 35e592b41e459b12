"""Run folders without training: made-up curves in real files."""

from __future__ import annotations

import json

import numpy as np

import perla
from perla.methods.settings import configure
from perla.runs.spec import Run, plan_evaluations
from perla.runs.store import Folder, marl_eval, summarise

TASK = "lbf:Foraging-8x8-2p-2f-coop-v2"


def made_up(
    path,
    algo,
    *,
    env=TASK,
    steps=100_000,
    seeds=3,
    first_seed=0,
    evaluations=10,
    finished=True,
    gain=0.0,
    **settings,
):
    """A run folder whose seeds learn at random speeds; returns its path."""
    rng = np.random.default_rng([*algo.encode(), *env.encode()])
    run = Run(
        env=env,
        algo=algo,
        config=configure(algo, "default", settings),
        steps=steps,
        seeds=tuple(range(first_seed, first_seed + seeds)),
        num_evaluations=evaluations,
        eval_episodes=4,
        absolute_episodes=8,
    )
    made = perla.make(env)
    folder = Folder.create(path, run, made.spec, ["cpu"], plan_evaluations(run, made))
    pace = rng.uniform(1, 3, seeds) + gain
    records = [
        {
            "seed": first_seed + seed,
            "evaluation": number,
            "step": number * run.steps // evaluations,
            "dropped_episodes": 0,
            "wall_seconds": 90.0 * number,
            "steps_per_second": 1e4,
            "return": float(np.tanh(pace[seed] * number / evaluations)),
            "return_sampled": float(0.9 * np.tanh(pace[seed] * number / evaluations)),
            "episode_length": 20.0,
        }
        for number in range(evaluations + 1)
        for seed in range(seeds)
    ]
    folder.append(records)
    if finished:
        absolute = [
            {"return": float(np.tanh(p)), "return_sampled": float(np.tanh(p))} for p in pace
        ]
        costs = {"compile_seconds": 1.0, "flops_per_step": 2e6}
        folder.write_summary(summarise(run, records, absolute, **costs))
        folder.write_marl_eval(marl_eval(run, records, absolute))
    folder.unlock()
    return path


def page_data(page: bytes) -> dict:
    """The JSON in a page."""
    start = '<script type="application/json" id="data">'
    text = page.decode()
    begin = text.index(start) + len(start)
    return json.loads(text[begin : text.index("</script>", begin)])
