"""A film of episodes, which notebooks show."""

from __future__ import annotations

import base64
from os import PathLike
from pathlib import Path

import numpy as np

from perla.errors import UserError
from perla.files import write_atomic
from perla.runs import replay


class Film:
    """Pictures of the states of episodes: uint8 `[height, width, 3]` each."""

    def __init__(self, episodes: list[list[np.ndarray]]) -> None:
        self.episodes = episodes
        """The pictures of each episode."""

    def gif(self) -> bytes:
        """The film as an endless GIF."""
        return replay.gif(self.episodes)

    def save(self, out: str | PathLike[str]) -> None:
        """Write the film as a .gif, or selected states of the first episode as a .png. Raises
        `UserError` for another name."""
        path = Path(out)
        if path.suffix.lower() not in (".gif", ".png"):
            raise UserError(f"{path}: expected a name that ends in .gif or .png")
        is_gif = path.suffix.lower() == ".gif"
        write_atomic(path, self.gif() if is_gif else replay.png(self.episodes[0]))

    def _repr_html_(self) -> str:
        return f'<img src="data:image/gif;base64,{base64.b64encode(self.gif()).decode()}">'
