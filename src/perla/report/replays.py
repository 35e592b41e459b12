"""Recorded episodes as the data of the page's replays."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np

from perla.envs.checks import explain_errors
from perla.envs.protocol import HostEnv
from perla.envs.render import Field, Fighter, Grid, HasScene, Scene, Table
from perla.errors import UserError
from perla.runs.recordings import Episode

PICTURE_WIDTH = 320
"""Width of the pictures of environments that have no scenes, in pixels; larger ones are shrunk."""
MOST_CELLS = 24
"""Rows and columns of a table that are shown."""
DIGITS = 4
"""Significant digits of probabilities and values."""


def replay(episode: Episode) -> dict[str, Any]:
    """The data of an episode's replay. A frame is a state; a step leads from one to the next.

    Raises `UserError` if the environment cannot be drawn.
    """
    with explain_errors(f"{episode.env.spec.id} cannot be drawn"):
        kind, frames = _frames(episode)
    fixed = _fixed(frames)
    spec = episode.env.spec
    names = episode.env.action_names if isinstance(episode.env, HasScene) else None
    rewards = episode.recording.rewards
    return {
        "kind": kind,
        "fixed": fixed,
        "frames": [{k: v for k, v in frame.items() if k not in fixed} for frame in frames],
        "agents": spec.agents,
        "actions": None if spec.continuous else _action_names(names, spec.max_actions),
        "steps": _steps(episode),
        "rewards": [number(reward) for reward in rewards],
        # As evaluations add: in 32 bits, one step after another.
        "return": number(float(_sum(rewards)), 7),
        "ended": _ended(episode),
        "values": _values_name(episode),
    }


def caption(episode: Episode) -> str:
    """The episode in words: its origin and its return."""
    total = f"{_sum(episode.recording.rewards):.4g}"
    who = f"Seed {episode.seed}, the best seed, with its best parameters and greedy actions."
    if episode.values is not None:
        who += " Values and marginals are those of the last critic"
        scaled = getattr(episode.run.config, "normalize_rewards", False)
        who += ", for rewards that are standardised." if scaled else "."
    if episode.returns is None:
        return f"{who} An episode of its own, with return {total}."
    return (
        f"{who} Episode {episode.recording.number} of the {len(episode.returns)} of the run's "
        f"absolute metric, the one with the median return, {total}; the metric, their mean, is "
        f"{episode.returns.mean():.4g}."
    )


def _sum(rewards: np.ndarray) -> np.float32:
    total = np.float32(0.0)
    for reward in rewards.astype(np.float32):
        total += reward
    return total


def _action_names(names: tuple[str, ...] | None, actions: int) -> list[str]:
    return list(names) if names else [str(number) for number in range(actions)]


def _ended(episode: Episode) -> str:
    trajectory = episode.recording.trajectory
    return "terminated" if bool(np.asarray(trajectory.terminated)[-1, 0]) else "truncated"


def _values_name(episode: Episode) -> str | None:
    """The kind of values in the steps."""
    if episode.values is not None:
        return "critic"
    return None if episode.recording.utilities is None else "utility"


# --- Steps --------------------------------------------------------------------------------------


def _steps(episode: Episode) -> list[dict[str, Any]]:
    """For each step the agents' actions `a`, probabilities `p`, action values `q`, values `v` and
    marginals `m`; what does not exist is left out."""
    trajectory = episode.recording.trajectory
    action = np.asarray(trajectory.action)[:, 0]
    columns: dict[str, np.ndarray] = {"a": action}
    avail = np.asarray(trajectory.observation.avail)[:, 0]
    if episode.recording.probs is not None:
        columns["p"] = episode.recording.probs
    if episode.recording.utilities is not None:
        columns["q"] = np.where(avail, episode.recording.utilities, np.nan)
        columns["v"] = np.take_along_axis(columns["q"], action[..., None], -1)[..., 0]
    if episode.values is not None:
        columns["v"] = np.asarray(episode.values.value)[:, 0]
        if episode.values.marginal is not None:
            columns["m"] = np.asarray(episode.values.marginal)[:, 0]
    alive = trajectory.observation.alive
    if alive is not None:
        columns["alive"] = np.asarray(alive)[:, 0].astype(int)
    return [
        {name: nested(column[time]) for name, column in columns.items()}
        for time in range(len(action))
    ]


# --- Frames -------------------------------------------------------------------------------------


def _frames(episode: Episode) -> tuple[str, list[dict[str, Any]]]:
    """The kind of the frames, and each frame's fields as JSON."""
    env, states = episode.env, episode.recording.states
    if isinstance(env, HostEnv):
        return "picture", [{"src": _picture(np.asarray(picture))} for picture in states]
    if isinstance(env, HasScene):
        scenes = [env.scene(state) for state in states]
        kinds = {Grid: "grid", Table: "table", Field: "field"}
        return kinds[type(scenes[0])], [_scene(scene) for scene in scenes]
    return "picture", [{"src": _picture(np.asarray(env.render(state)))} for state in states]


def _scene(scene: Scene) -> dict[str, Any]:
    match scene:
        case Grid(size, agents, foods):
            return {"size": size, "agents": agents, "foods": foods}
        case Table(values, marked):
            rows = [nested(row[:MOST_CELLS]) for row in values[:MOST_CELLS]]
            return {"rows": rows, "marked": marked, "cut": max(values.shape) > MOST_CELLS}
        case Field(terrain, fighters):
            return {"terrain": terrain, "fighters": [_fighter(each) for each in fighters]}
    raise UserError(f"{scene!r}: unknown scene")


def _fighter(fighter: Fighter) -> list[Any]:
    shot = None if fighter.shot is None else [number(end) for end in fighter.shot]
    return [
        number(fighter.x),
        number(fighter.y),
        number(fighter.radius),
        int(fighter.enemy),
        fighter.label,
        number(fighter.life),
        None if fighter.shield is None else number(fighter.shield),
        shot,
        int(fighter.heals),
    ]


def _fixed(frames: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields that are the same in all frames."""
    first, *others = frames
    return {k: v for k, v in first.items() if all(frame[k] == v for frame in others)}


def _picture(image: np.ndarray) -> str:
    """A picture `[height, width, 3]` as the address of a PNG that is part of it."""
    from PIL import Image

    if image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"a picture has shape {image.shape}; expected [height, width, 3]")
    picture = Image.fromarray(image.astype(np.uint8))
    if picture.width > PICTURE_WIDTH:
        height = max(1, round(picture.height * PICTURE_WIDTH / picture.width))
        picture = picture.resize((PICTURE_WIDTH, height))
    buffer = io.BytesIO()
    picture.quantize(64).save(buffer, format="PNG", optimize=True)
    return png(buffer.getvalue())


def png(content: bytes) -> str:
    """The content of a PNG file as an address."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def nested(values: Any) -> Any:
    """Arrays as nested lists of rounded numbers; NaN is null."""
    if np.ndim(values) > 0:
        return [nested(each) for each in values]
    return int(values) if np.issubdtype(np.asarray(values).dtype, np.integer) else number(values)


def number(value: Any, digits: int = DIGITS) -> float | None:
    """A number with so many significant digits; None if it is not finite."""
    value = float(value)
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
