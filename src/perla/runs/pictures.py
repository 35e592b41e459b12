"""The pictures of a finished run: its learning curves, and an episode of its best policy."""

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
from perla.runs.spec import Run
from perla.runs.store import best_seed

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
    from perla.analysis import figures  # Slow to import, and needed only here.

    write_atomic(out, figures.curves([folder]))


def draw_replay(
    folder: Path,
    run: Run,
    env: Env | HostEnv,
    trainer: AnyTrainer,
    exported: Any,
    summary: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Draw an episode of the best seed's best policy, if the environment can be drawn."""
    actor = trainer.actor(exported, run.seeds.index(best_seed(summary)), best=True)
    try:
        frames = replay.film(env, actor, seed=0, greedy=True)
    except UserError as error:
        say(f"no {REPLAY}: {error}")
        return
    write_atomic(folder / REPLAY, replay.gif(frames))
