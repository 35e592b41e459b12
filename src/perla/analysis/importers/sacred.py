"""Folders that sacred's file observer writes for EPyMARL and PyMARL.

`config.json` has the settings; `metrics.json` (or, of older versions, `info.json`) has every metric
with its steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from perla.analysis.importers.series import Options, Series, named_return
from perla.analysis.load import flatten
from perla.errors import UserError
from perla.files import decode, explained, read_regular

FILES = ("metrics.json", "info.json")
"""The files with metrics; the first that is there counts."""
FAMILIES = {"sc2": "smac:{}", "sc2v2": "smac:v2-{}", "smaclite": "smac:lite-{}"}
"""EPyMARL's families of environments → perla's ids, of a map."""
PREFIXES = {"lbforaging:": "lbf:"}
"""Prefixes of Gymnasium's ids → perla's."""
RETURNS = ("test_return_mean", "test_total_return_mean")
"""The return of an evaluation: of a common reward, and summed over individual ones."""
NAMES = {"test_battle_won_mean": "win_rate", "test_ep_length_mean": "episode_length"}
"""EPyMARL's metrics → perla's."""
IRRELEVANT = {
    "seed", "env_args.seed", "label", "repeat_id", "hypergroup", "local_results_path", "render",
    "checkpoint_path", "load_step", "save_model", "save_model_interval", "save_replay", "use_cuda",
    "use_tensorboard", "use_wandb", "wandb_team", "wandb_project", "wandb_mode", "wandb_save_model",
    "name", "log_interval", "runner_log_interval", "learner_log_interval", "buffer_cpu_only",
}  # fmt: skip
"""Settings that do not tell methods apart."""


def is_source(folder: Path) -> bool:
    """True if `folder` is a run of sacred."""
    return (folder / "config.json").is_file() and any(
        (folder / name).is_file() for name in (*FILES, "run.json")
    )


def read(folder: Path, options: Options) -> list[Series]:
    """The run in `folder`. Raises `UserError`, with the file and the reason, if it is damaged or
    has no evaluation."""
    config = _read(folder / "config.json")
    curves, stamps = _metrics(folder)
    tests = [name for name in curves if name.startswith("test_")] if options.tag is None else None
    if tests == []:
        raise UserError(f"{folder}: no evaluation (no test_return_mean)")
    theirs = named_return(tests or list(curves), options, folder, known=RETURNS)
    steps, values = curves[theirs]
    sampled = _is_sampled(config)
    metrics = {"return_sampled" if sampled and theirs in RETURNS else "return": values}
    metrics |= {
        ours: curves[name][1]
        for name, ours in NAMES.items()
        if name in curves and curves[name][0] == steps and name != theirs
    }
    if theirs in stamps and len(stamps[theirs]) == len(steps):
        metrics["wall_seconds"] = stamps[theirs]
    settings = flatten(config)
    return [
        Series(
            path=folder,
            source="EPyMARL",
            method=str(config.get("name", folder.name)),
            task=_task(config),
            seed=config["seed"] if isinstance(config.get("seed"), int) else None,
            steps=steps,
            metrics=metrics,
            settings={name: settings[name] for name in settings if name not in IRRELEVANT},
            names_policy=theirs in RETURNS,
            meaning=(*_meaning(config, theirs, sampled), *_status(folder)),
        )
    ]


def _metrics(
    folder: Path,
) -> tuple[dict[str, tuple[list[float], list[float]]], dict[str, list[float]]]:
    """The steps and values of every metric, and the seconds since the run's start where known."""
    if (folder / "metrics.json").is_file():
        table = _read(folder / "metrics.json")
        path = folder / "metrics.json"
        curves = {
            name: (_list(entry, "steps", path), _list(entry, "values", path))
            for name, entry in table.items()
            if isinstance(entry, Mapping)
        }
        start = (
            _read(folder / "run.json").get("start_time")
            if (folder / "run.json").is_file()
            else None
        )
        stamps = {
            name: seconds
            for name, entry in table.items()
            if isinstance(entry, Mapping) and (seconds := _seconds(entry, start))
        }
    else:
        path = folder / "info.json"
        if not path.is_file():
            raise UserError(f"{folder}: a run of sacred without metrics ({', '.join(FILES)})")
        table = _read(path)
        curves = {
            name: (_list(table, f"{name}_T", path), _list(table, name, path))
            for name in table
            if f"{name}_T" in table
        }
        stamps = {}
    for name, (steps, values) in curves.items():
        if len(steps) != len(values):
            raise UserError(
                f"{path}: damaged ({len(values)} values of {name} at {len(steps)} steps)"
            )
    return curves, stamps


def _list(table: Mapping[str, Any], name: str, path: Path) -> list[float]:
    """Numbers of a list; sacred writes NumPy's as objects with a `value`."""
    values = table.get(name, ())
    if not isinstance(values, list):
        raise UserError(f"{path}: damaged ({name} is no list)")
    plain = [each.get("value") if isinstance(each, Mapping) else each for each in values]
    numbers = [float(each) for each in plain if isinstance(each, (int, float))]
    if len(numbers) < len(plain):
        raise UserError(f"{path}: damaged ({name} has something that is no number)")
    return numbers


def _seconds(entry: Mapping[str, Any], start: Any) -> list[float]:
    """Seconds since the start of the run at every value; empty if they are unknown."""
    try:
        began = datetime.fromisoformat(start)
        return [
            (datetime.fromisoformat(stamp) - began).total_seconds() for stamp in entry["timestamps"]
        ]
    except (TypeError, ValueError, KeyError):
        return []


def _task(config: Mapping[str, Any]) -> str | None:
    """The environment's id: perla's if perla has it, else the source's own words."""
    arguments = config.get("env_args")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    family = str(config.get("env", ""))
    if "map_name" in arguments:
        return FAMILIES.get(family, f"{family}:{{}}").format(arguments["map_name"])
    key = str(arguments.get("key") or family)
    for theirs, ours in PREFIXES.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key or None


def _is_sampled(config: Mapping[str, Any]) -> bool:
    """True if evaluations sample actions: `soft_policies` always does."""
    return config.get("action_selector") == "soft_policies" or not config.get("test_greedy", True)


def _meaning(config: Mapping[str, Any], name: str, sampled: bool) -> tuple[str, ...]:
    parallel = config.get("batch_size_run", 1)
    reward = {True: "summed", False: "averaged"}[config.get("reward_scalarisation", "sum") == "sum"]
    if not config.get("common_reward", True):
        reward = "summed"
    episodes = config.get("test_nepisode")
    mean = f"the mean of {episodes} test episodes" if episodes else "the mean of the test episodes"
    return (
        f"steps are t_env: transitions summed over the {parallel} parallel environment(s)",
        f"returns are {name}: {mean} with {'sampled' if sampled else 'greedy'} actions, of rewards "
        f"{reward} over agents",
    )


def _status(folder: Path) -> tuple[str, ...]:
    """A line on a run that did not end as it should."""
    if not (folder / "run.json").is_file():
        return ()
    status = _read(folder / "run.json").get("status")
    return () if status == "COMPLETED" else (f"{folder}: its status is {status}",)


def _read(path: Path) -> dict[str, Any]:
    with explained(path):
        return decode(read_regular(path), dict[str, Any], source=path)
