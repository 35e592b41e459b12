"""`perla evaluate`: the policies of a run, or a scripted one, measured."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perla.cli import suites
from perla.cli.parser import trust
from perla.cli.policies import evaluation_parser, seed_of
from perla.cli.tables import say_table
from perla.cli.train import option
from perla.config import Count, convert
from perla.errors import UserError

if TYPE_CHECKING:
    from perla.loops.evaluate import Episodes

EPISODES = 320


def evaluate_command(argv: Sequence[str]) -> int:
    """Evaluate the policies of a run, or a scripted policy."""
    parser = evaluation_parser(
        "evaluate",
        "Play episodes with the policies of a run, and print their returns.\n"
        "With --policy and --env a scripted policy plays instead: a baseline.",
        " (the default)",
        optional=True,
    )
    parser.add_argument(
        "--policy",
        metavar="NAME",
        help="a scripted policy instead of a run's: focus-fire, nearest or kite, in environments "
        "with battles, or random",
    )
    parser.add_argument(
        "--env-option", metavar="NAME=VALUE", action="append", default=[],
        help="with --policy: an option of the environment; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--episodes", metavar="N", default=str(EPISODES), help=f"episodes per seed [{EPISODES}]"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse(argv)
    episodes = convert(arguments.episodes, Count, name="--episodes")
    if arguments.policy is None:
        if arguments.dir is None:
            raise UserError("expected DIR, the run's folder, or --policy and --env")
        if arguments.env_option:
            raise UserError("--env-option: is for --policy; a run has its options")
        facts, played = _play_run(arguments, episodes)
    else:
        facts, played = _play_script(arguments, episodes)
    rows = [{"seed": seed, **summarise(each)} for seed, each in played.items()]
    if arguments.json:
        print(json.dumps({**facts, "episodes": episodes, "seeds": rows}, indent=1))
    else:
        _print_table(f"{facts['policy']} on {facts['env']}: {episodes} episodes", rows)
    return 0


def _play_run(
    arguments: argparse.Namespace, episodes: int
) -> tuple[dict[str, Any], dict[int, Episodes]]:
    seed = seed_of(arguments.seed)

    from perla.runs import execute
    from perla.runs.play import play

    run, env, trainer, exported = execute.load(
        Path(arguments.dir), trust=trust(arguments), say=suites.tell
    )
    how = "sampled" if arguments.sample else "greedy"
    which = "last" if arguments.last else "best"
    played = {}
    with closing(trainer):
        for one in run.seeds if seed is None else (seed,):
            actor = execute.policy(run, trainer, exported, one, best=not arguments.last)
            played[one] = play(trainer, actor, one, episodes, greedy=not arguments.sample)
    policy = f"{run.algo} ({how} actions, {which} parameters)"
    return {"policy": policy, "env": run.env, "rules": dict(env.spec.rules)}, played


def _play_script(
    arguments: argparse.Namespace, episodes: int
) -> tuple[dict[str, Any], dict[int, Episodes]]:
    if arguments.dir is not None:
        raise UserError(f"{arguments.dir}: a run's folder and --policy exclude each other")
    for flag in ("--greedy", "--sample", "--last", "--trust"):
        if flag in arguments.given:
            raise UserError(f"{flag}: is for a run; --policy is a script")
    if len(arguments.env or ()) != 1:
        raise UserError("--policy: needs one --env, the environment that it plays")
    seed = seed_of(arguments.seed) or 0

    import jax

    from perla.envs.protocol import HostEnv
    from perla.envs.registry import make_env
    from perla.envs.scripts import make_script
    from perla.loops.scripted import play, play_host
    from perla.loops.streams import Stream, stream_key

    env = make_env(arguments.env[0], **dict(map(option, arguments.env_option)))
    key = stream_key(jax.random.key(seed), Stream.PLAY)
    script = make_script(env, arguments.policy)
    if isinstance(env, HostEnv):
        with closing(env):
            played = play_host(env, script, key, episodes)
    else:
        played, _ = jax.jit(lambda key: play(env, script, key, episodes))(key)
    facts = {"policy": arguments.policy, "env": arguments.env[0], "rules": dict(env.spec.rules)}
    return facts, {seed: played}


def summarise(played: Episodes) -> dict[str, Any]:
    """Statistics of a seed's episodes: of their returns and lengths and, in environments with a
    winner, the share that is won, with its 95% interval."""
    import numpy as np

    from perla.analysis.stats import proportion

    returns, wins = np.asarray(played.returns, float), np.asarray(played.wins, float)
    error = float(returns.std(ddof=1) / np.sqrt(len(returns))) if len(returns) > 1 else None
    row: dict[str, Any] = {
        "return": float(returns.mean()),
        "return_std_error": error,
        "lowest_return": float(returns.min()),
        "highest_return": float(returns.max()),
        "length": float(np.asarray(played.lengths, float).mean()),
    }
    if not np.isnan(wins).any():
        score = proportion(int(wins.sum()), len(wins))
        row |= {"win_rate": score.point, "win_rate_interval": [score.low, score.high]}
    return row


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    from perla.analysis.stats import Score, iqm

    cells = []
    for row in rows:
        error = row["return_std_error"]
        shown = {
            "seed": str(row["seed"]),
            "return": f"{row['return']:.4f}",
            "± std. error": "–" if error is None else f"{error:.4f}",
            "lowest": f"{row['lowest_return']:.4f}",
            "highest": f"{row['highest_return']:.4f}",
            "length": f"{row['length']:.1f}",
        }
        if "win_rate" in row:
            shown["won"] = f"{Score(row['win_rate'], *row['win_rate_interval'])}"
        cells.append(shown)
    if len(rows) > 1:
        whole = {"seed": "IQM", "return": f"{iqm([row['return'] for row in rows]):.4f}"}
        cells.append(dict.fromkeys(cells[0], "") | whole)
    say_table(title, cells)
