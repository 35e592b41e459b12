"""A run in Python: its results, its policies, and going on with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from perla.analysis import run_figure
from perla.api.execution import Number, execution, interruptible
from perla.api.film import Film
from perla.api.frames import data_frame
from perla.config import Count, convert, to_plain
from perla.envs.protocol import Env, HostEnv
from perla.envs.registry import Trust
from perla.errors import UserError
from perla.loops.protocol import AnyTrainer
from perla.policies.policy import Policy
from perla.runs import execute, exports, play, replay
from perla.runs.callbacks import Callback, Progress
from perla.runs.loggers import DEFAULT
from perla.runs.spec import Run as RunData
from perla.runs.spec import Seed, Steps
from perla.runs.store import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Loaded = tuple[Env | HostEnv, AnyTrainer, Any]
"""An environment, its trainer, and exported states."""


class Run:
    """A run, finished or not, in a folder or in memory. `perla.train` and `perla.load` return it.

    It can be pickled, and shows itself in notebooks. Data frames need pandas, `perla[notebook]`.
    """

    def __init__(self, result: execute.Result, *, trust: Trust = ()) -> None:
        self._result, self._trust = result, trust
        self._loaded: Loaded | None = None

    # Results.

    @property
    def spec(self) -> RunData:
        """The run as data: environment, method, settings, steps, seeds."""
        return self._result.run

    @property
    def out(self) -> Path | None:
        """The run folder, if there is one."""
        return self._result.out

    @property
    def records(self) -> list[Record]:
        """Every evaluation of every seed in order: the lines of `metrics.jsonl`."""
        return self._result.records

    @property
    def finished(self) -> bool:
        """True if the run has made all its steps and its absolute metric is known."""
        return bool(self._result.summary)

    @property
    def summary(self) -> dict[str, Any]:
        """Final, best and absolute metrics: the content of `summary.json`. Raises `UserError` if
        the run is not finished."""
        if not self.finished:
            raise UserError(f"{self.name}: is not finished; run.resume() goes on")
        return self._result.summary

    @property
    def dropped(self) -> dict[int, str]:
        """The seeds that were dropped, and the first number of each that was not finite."""
        return self._result.dropped

    @property
    def dropped_episodes(self) -> dict[int, int]:
        """The number of each seed's episodes that were dropped, in training and in evaluations,
        because a host environment failed."""
        return self._result.dropped_episodes

    @property
    def name(self) -> str:
        """The folder, or method and environment, for messages."""
        return str(self.out) if self.out is not None else f"{self.spec.algo} on {self.spec.env}"

    def curves(self) -> DataFrame:
        """A row for each evaluation and seed, with the columns of `metrics.jsonl`."""
        return data_frame(self.records)

    def table(self) -> DataFrame:
        """A row for each seed: its final, best and absolute return, greedy and sampled."""
        return data_frame(
            [
                {"seed": entry["seed"]}
                | {
                    f"{kind}_{name}": entry[kind].get(name)
                    for kind in ("final", "best", "absolute")
                    for name in ("return", "return_sampled")
                }
                | {"best_step": entry["best"]["step"]}
                for entry in self.summary["seeds"]
            ]
        ).set_index("seed")

    def plot(self, *metrics: str) -> Figure:
        """Plot metrics against environment steps: the IQM over seeds, and their range. By default
        the returns of the greedy and of the sampled policies. Raises `UserError` for an unknown
        metric."""
        seeds = [seed for seed in self.spec.seeds if seed not in self.dropped]
        title = f"{self.spec.algo} on {self.spec.env}"
        return run_figure.plot(self.records, seeds, title, metrics or run_figure.RETURNS)

    # Policies.

    def policy(self, seed: Number | None = None, *, best: bool = True) -> Policy:
        """The policies of all agents, to act in a loop of one's own: those of `seed` (None: the one
        with the highest absolute return), with the `best` evaluated or the last parameters."""
        chosen = self._seed(seed)
        with self._opened() as (env, trainer, exported):
            actor = execute.policy(self.spec, trainer, exported, chosen, best=best)
            return Policy(actor, env.spec, seed=chosen)

    def export(
        self,
        out: str | PathLike[str] | None = None,
        *,
        format: Literal["jax", "numpy", "onnx"] = "numpy",
        seed: Number | None = None,
        best: bool = True,
    ) -> Path:
        """Write a policy, chosen as by `policy`, as a file for other programs, and check that it
        chooses the same actions. `out` is by default `policy.npz`, `.jaxexport` or `.onnx` in the
        run's folder. Returns the path. Raises `UserError` as `perla export` does."""
        chosen = self._seed(seed)
        path = (
            out if out is not None or self.out is None else exports.default_path(self.out, format)
        )
        if path is None:
            raise UserError(f"{self.name}: has no folder; name a file, out=FILE")
        with self._opened() as (env, trainer, exported):
            actor = execute.policy(self.spec, trainer, exported, chosen, best=best)
            exports.write(Path(path), env, actor, format)
        return Path(path)

    def actor(self, seed: int | None = None, *, best: bool = True) -> Any:
        """The actor of `seed` (None: the run's first) with its `best` or its last parameters: a
        pytree of JAX arrays (`perla.nets.actors`)."""
        with self._opened() as (_, trainer, exported):
            return execute.policy(self.spec, trainer, exported, seed, best=best)

    def evaluate(
        self,
        episodes: Number = play.EPISODES,
        *,
        greedy: bool = True,
        seed: Number | None = None,
        best: bool = True,
    ) -> DataFrame:
        """Play new `episodes` with the policy of each seed, or of one. A row for each episode:
        seed, return, length and, where the environment says so, won."""
        count = convert(to_plain(episodes), Count, name="episodes")
        rows: list[dict[str, Any]] = []
        with self._opened() as (_, trainer, exported):
            for one in self.spec.seeds if seed is None else (self._seed(seed),):
                actor = execute.policy(self.spec, trainer, exported, one, best=best)
                played = play.play(trainer, actor, one, count, greedy=greedy)
                columns = {"return": played.returns, "length": played.lengths, "won": played.wins}
                arrays = {name: np.asarray(column).tolist() for name, column in columns.items()}
                rows += [
                    {"seed": one, "episode": index} | dict(zip(arrays, values, strict=True))
                    for index, values in enumerate(zip(*arrays.values(), strict=True))
                ]
        frame = data_frame(rows)
        return frame.drop(columns="won") if frame["won"].isna().all() else frame

    def render(
        self,
        out: str | PathLike[str] | None = None,
        *,
        episodes: Number = replay.EPISODES,
        greedy: bool | None = None,
        seed: Number | None = None,
        best: bool = True,
    ) -> Film:
        """Film episodes of a policy; notebooks show the film. `greedy` is by default the policy
        that was evaluated better. `out` is a .gif or .png file to write.

        Raises `UserError` if the environment cannot be drawn.
        """
        chosen = self._seed(seed)
        if greedy is None:
            greedy = not self.finished or play.is_greedy_better(self.summary, chosen)
        with self._opened() as (env, trainer, exported):
            actor = execute.policy(self.spec, trainer, exported, chosen, best=best)
            count = convert(to_plain(episodes), Count, name="episodes")
            film = Film(replay.films(env, actor, seed=chosen, episodes=count, greedy=greedy))
        if out is not None:
            film.save(out)
        return film

    # Going on.

    def resume(
        self,
        steps: Number | None = None,
        *,
        callbacks: Iterable[Callback | Callable[[Progress], Any]] = (),
        quiet: bool = False,
        checkpoint_seconds: Number = execute.CHECKPOINT_SECONDS,
        keep_checkpoints: Number | Literal["all"] = 2,
        on_nonfinite: Literal["stop", "drop-seed"] = "stop",
        log: str | Iterable[str] = DEFAULT,
    ) -> Run:
        """Go on with the run in its folder, to its end or to `steps` in all; the schedules then
        follow the new number. The other arguments are those of `perla.train`.

        Raises `UserError` for a run without a folder, and if `steps` are not more than it has.
        """
        if self.out is None:
            raise UserError(f"{self.name}: has no folder to go on from; train with out=DIR")
        total = None if steps is None else convert(to_plain(steps), Steps, name="steps")
        with interruptible():
            result = execute.resume(
                self.out,
                steps=total,
                trust=self._trust,
                make_env=self._result.make_env,
                **execution(
                    quiet=quiet,
                    callbacks=callbacks,
                    checkpoint_seconds=checkpoint_seconds,
                    keep_checkpoints=keep_checkpoints,
                    on_nonfinite=on_nonfinite,
                    log=log,
                ),
            )
        return Run(result, trust=self._trust)

    # Forms.

    def __repr__(self) -> str:
        spec = self.spec
        count = len(spec.seeds)
        seeds = f"seed {spec.seeds[0]}" if count == 1 else f"{count} seeds"
        state = "finished" if self.finished else "not finished"
        where = "in memory" if self.out is None else f"in {self.out}"
        return f"<Run: {spec.algo} on {spec.env}, {seeds}, {spec.steps:,} steps, {state}, {where}>"

    def _repr_html_(self) -> str:
        from perla.api import html

        return html.of_run(self)

    def __getstate__(self) -> dict[str, Any]:
        """The results without compiled programs and processes."""
        return vars(self) | {"_loaded": None}

    # Helpers.

    def _seed(self, seed: Any) -> int:
        """The seed of the run that `seed` stands for."""
        if seed is None:
            return play.best_seed(self.summary) if self.finished else self.spec.seeds[0]
        return int(convert(to_plain(seed), Seed, name="seed"))

    @contextmanager
    def _opened(self) -> Iterator[Loaded]:
        """The environment, the trainer and the states. Those in JAX are kept for the next call;
        host environments are made anew, and closed."""
        loaded = self._loaded or self._load()
        if not isinstance(loaded[0], HostEnv):
            self._loaded = loaded
            yield loaded
            return
        with closing(loaded[1]):
            yield loaded

    def _load(self) -> Loaded:
        result = self._result
        if result.arrays is None:
            assert result.out is not None
            return execute.load(result.out, trust=self._trust, make_env=result.make_env)[1:]
        env, trainer = execute.build(result.run, make_env=result.make_env)
        structure = jax.tree.structure(trainer.template())
        return env, trainer, jax.tree.unflatten(structure, result.arrays)
