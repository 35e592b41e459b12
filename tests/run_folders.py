"""Run folders as training writes them, without training."""

from __future__ import annotations

from pathlib import Path

from perla.analysis.gather import find
from perla.analysis.load import load
from perla.config import VERSION
from perla.envs.protocol import Spec
from perla.methods.settings import configure
from perla.runs import store
from perla.runs.spec import Run

TASK = "lbf:Foraging-5x5-2p-1f-v2"
GOOD = (0.95, 0.96, 0.97, 0.98, 0.99)
BAD = (0.05, 0.2, 0.3, 0.4, 0.5)


def write_run(
    path: Path, algo="ippo", final=GOOD, *, env=TASK, rules=None, without=(), seeds=None,
    settings=None, preset="default", **numbers,
) -> Path:  # fmt: skip
    """The run folder `path`: every seed's curve rises straight to its value in `final`.

    `settings` are those of the learner, `numbers` those of the run, and the facts `without` are
    left out of its files.
    """
    numbers = {"steps": 100, "num_evaluations": 2} | numbers
    seeds = tuple(range(len(final))) if seeds is None else tuple(seeds)
    config = configure(algo, preset, settings or {})
    run = Run(env=env, algo=algo, preset=preset, config=config, seeds=seeds, **numbers)
    path.mkdir(parents=True)
    spec = Spec(env, 2, 3, 6, (6, 6), 50, "common", rules or {"size": 5, "penalty": 0.0})
    plan = {
        "num_evaluations": run.num_evaluations,
        "eval_episodes": run.eval_episodes or 32,
        "absolute_episodes": run.absolute_episodes or 320,
    }
    facts = {"settings_version": VERSION, "run": run, "environment": store.environment(spec)}
    facts["evaluations"] = plan
    (path / "config.json").write_bytes(store.dump(_left(facts, without)))
    count = run.num_evaluations
    records = [
        {"seed": seed, "evaluation": k, "step": k * run.steps // count, "wall_seconds": 60.0 * k}
        | {"return": k / count * value, "return_sampled": k / count / 2 * value}
        | ({"td_error": 1.0} if k else {})
        for k in range(count + 1)
        for seed, value in zip(seeds, final, strict=True)
    ]
    (path / "metrics.jsonl").write_bytes(b"".join(map(store.line, records)))
    absolute = [{"return": value, "return_sampled": value / 2} for value in final]
    summary = store.summarise(run, records, absolute, compile_seconds=1.0, flops_per_step=1e6)
    (path / "summary.json").write_bytes(store.dump(_left(summary, without)))
    (path / "marl_eval.json").write_bytes(store.dump(store.marl_eval(run, records, absolute)))
    return path


def _left(facts, without):
    return {name: fact for name, fact in facts.items() if name not in without}


def load_all(paths):
    """The runs in folders, each of which is a run or has some below it."""
    return [load(source.path) for path in paths for source in find(path)]
