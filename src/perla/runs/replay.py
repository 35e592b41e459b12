"""Films of episodes: an animated GIF, or a PNG of selected states."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from perla.envs.checks import explain_errors
from perla.envs.protocol import Env, HostEnv
from perla.errors import UserError
from perla.loops.evaluate import watch
from perla.loops.record import record_host
from perla.loops.streams import Stream, stream_key

EPISODES = 3
"""Episodes of a run's film."""
MILLISECONDS = 80, 250
"""Shortest and longest duration of a state, which the eye can follow."""
EPISODE_MILLISECONDS = 8_000
"""Duration of an episode, where that range allows it."""
MOST_STATES = 200
"""States of an episode that a film shows; a longer episode skips some."""
PAUSE = 1500
"""Duration of an episode's last state."""
CAPTION = 18
"""Height of the line below each picture."""


def film(env: Env | HostEnv, actor: Any, *, seed: int, greedy: bool) -> list[np.ndarray]:
    """One episode of `actor` as a picture `[height, width, 3]` for each state.

    Raises `UserError` if the environment fails or cannot be rendered.
    """
    key = stream_key(jax.random.key(seed), Stream.FILM)
    failure = f"{env.spec.id} cannot be drawn"
    with explain_errors(failure):
        if isinstance(env, HostEnv):
            pictures = record_host(env, actor, key, greedy=greedy).states
        else:
            pictures = [env.render(state) for state in watch(env, actor, key, greedy=greedy)]
    frames = [np.asarray(picture) for picture in pictures]
    for frame in frames:
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != frames[0].shape:
            raise UserError(
                f"{failure}: a picture has shape {frame.shape}; expected [height, width, 3], the "
                "same for all"
            )
    return [frame.astype(np.uint8) for frame in frames]


def films(
    env: Env | HostEnv,
    actor: Any,
    *,
    seed: int,
    greedy: bool,
    episodes: int = EPISODES,
    first: int = 0,
) -> list[list[np.ndarray]]:
    """The `episodes` of `actor`, the policy of `seed`, from number `first` on, with a line on each
    picture that says so. Raises `UserError` as `film`."""
    policy = "greedy" if greedy else "sampled"
    return [
        _captioned(
            _thinned(film(env, actor, seed=number, greedy=greedy)),
            f"seed {seed}, {policy}, episode {number}",
        )
        for number in range(first, first + episodes)
    ]


def _thinned(frames: list[np.ndarray]) -> list[np.ndarray]:
    """At most `MOST_STATES` of the `frames`, evenly spaced, with the last."""
    every = math.ceil(len(frames) / MOST_STATES)
    return frames[::-every][::-1]


def _captioned(frames: Sequence[np.ndarray], text: str) -> list[np.ndarray]:
    """The `frames` with a line of text below."""
    from PIL import Image, ImageDraw

    line = Image.new("RGB", (frames[0].shape[1], CAPTION), "white")
    ImageDraw.Draw(line).text((4, 3), text, fill=(60, 60, 60))
    return [np.concatenate([frame, np.asarray(line)]) for frame in frames]


def gif(episodes: Sequence[Sequence[np.ndarray]]) -> bytes:
    """The frames of `episodes`, one after another, as an endless GIF animation."""
    from PIL import Image

    frames = [frame for episode in episodes for frame in episode]
    durations: list[int] = []
    for episode in episodes:
        each = int(np.clip(EPISODE_MILLISECONDS / len(episode), *MILLISECONDS))
        durations += [each] * (len(episode) - 1) + [PAUSE]
    # One palette for all pictures prevents flicker. It is chosen by a ninth of their pixels.
    sample = Image.fromarray(np.concatenate([frame[::3, ::3] for frame in frames]))
    palette = sample.quantize(255)
    images = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=0,
        optimize=False,
    )
    return buffer.getvalue()


def png(frames: Sequence[np.ndarray], most: int = 12) -> bytes:
    """At most `most` of the `frames` in one picture, row by row: evenly spaced, with the first and
    the last."""
    from PIL import Image

    count = min(most, len(frames))
    chosen = [frames[round(i * (len(frames) - 1) / max(count - 1, 1))] for i in range(count)]
    columns = min(count, 4)
    rows = math.ceil(count / columns)
    height, width, _ = chosen[0].shape
    gap = max(4, width // 40)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for index, frame in enumerate(chosen):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="PNG")
    return buffer.getvalue()
