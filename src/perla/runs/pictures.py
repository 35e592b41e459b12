"""The pictures of a finished run: its learning curves, and a film of its best policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from perla.envs.protocol import Env, HostEnv
from perla.errors import UserError
from perla.files import write_atomic
from perla.loops.protocol import AnyTrainer
from perla.runs import replay
from perla.runs.play import best_seed, is_greedy_better
from perla.runs.spec import Run

CURVES, REPLAY = "curves.png", "replay.gif"


def missing(folder: Path) -> bool:
    """True if a run folder lacks a picture."""
    return not all((folder / name).exists() for name in (CURVES, REPLAY))


def draw_missing(
    folder: Path,
    run: Run,
    summary: Mapping[str, Any],
    load: Callable[[], tuple[Run, Env | HostEnv, AnyTrainer, Any]],
    say: Callable[[str], None],
) -> None:
    """Draw the pictures that the folder of a finished run lacks; `load` returns the run, its
    environment, trainer and states. `say` is told why an episode cannot be drawn."""
    if not (folder / CURVES).exists():
        draw_curves(folder, folder / CURVES)
    if (folder / REPLAY).exists():
        return
    try:
        _, env, trainer, exported = load()
    except UserError as error:
        say(f"no {REPLAY}: {error}")
        return
    with closing(trainer):
        draw_replay(folder, run, env, trainer, exported, summary, say)


def draw_curves(folder: Path, out: Path) -> None:
    """Draw the learning curves of the run in `folder` as the PNG file `out`."""
    from perla.analysis import run_figure  # Slow to import, and needed only here.

    write_atomic(out, run_figure.curves(folder))


def draw_replay(
    folder: Path,
    run: Run,
    env: Env | HostEnv,
    trainer: AnyTrainer,
    exported: Any,
    summary: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Film episodes of the best seed's best parameters, if the environment can be drawn: of the
    greedy or the sampled policy, whichever was evaluated better."""
    seed = best_seed(summary)
    greedy = is_greedy_better(summary, seed)
    actor = trainer.actor(exported, run.seeds.index(seed), best=True)
    try:
        episodes = replay.films(env, actor, seed=seed, greedy=greedy)
    except UserError as error:
        say(f"no {REPLAY}: {error}")
        return
    write_atomic(folder / REPLAY, replay.gif(episodes))
    policy = "greedy" if greedy else "sampled"
    say(f"{REPLAY}: {len(episodes)} episodes of the {policy} policy of seed {seed}")
