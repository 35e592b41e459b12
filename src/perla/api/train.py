"""Training from Python: `perla.train` and `perla.load`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from perla.api.execution import Number, count, execution, interruptible
from perla.api.run import Run
from perla.config import Count, convert, to_plain
from perla.envs import objects
from perla.envs.registry import Trust
from perla.errors import UserError
from perla.methods.settings import configure
from perla.runs import execute
from perla.runs.callbacks import Callback, Progress
from perla.runs.loggers import DEFAULT
from perla.runs.spec import Run as RunData
from perla.runs.spec import Steps, read_seeds
from perla.runs.store import Folder
from perla.runs.warm_start import Part, Source
from perla.runs.warm_start import read as read_source


def train(
    env: Any,
    algo: str = "perla-ippo",
    *,
    steps: Number,
    seeds: Number | Iterable[Number] = 1,
    preset: str = "default",
    out: str | PathLike[str] | None = None,
    env_options: Mapping[str, Any] | None = None,
    data_parallel: Number = 1,
    num_evaluations: Number | None = None,
    eval_episodes: Number | None = None,
    absolute_episodes: Number | None = None,
    warm_start: Run | str | PathLike[str] | None = None,
    warm_start_part: Literal["all", "actor"] = "all",
    callbacks: Iterable[Callback | Callable[[Progress], Any]] = (),
    quiet: bool = False,
    checkpoint_seconds: Number = execute.CHECKPOINT_SECONDS,
    keep_checkpoints: Number | Literal["all"] = 2,
    on_nonfinite: Literal["stop", "drop-seed"] = "stop",
    log: str | Iterable[str] = DEFAULT,
    **settings: Any,
) -> Run:
    """Train `algo` on `env` for `steps` environment steps per seed, and return the run.

    `env` is an id (`perla list envs`), an environment object, or a function or class that makes
    one: of perla's protocols, PettingZoo, Gymnasium or SMAC. Objects outside JAX are copied, and
    sent to worker processes by cloudpickle, also from a notebook; a script needs
    `if __name__ == "__main__":` around this call then. `env_options` are the arguments of the
    family or of the function.

    `seeds` is a number of seeds (0, 1, …) or a list of them. `settings` override the learner's
    settings in `preset`, as flat as on the command line: `lr=1e-3`, `returns="n-step", n_step=10`.
    Numbers may be NumPy's, or text. With `out` the run is saved in that folder, as by
    `perla train`; without it nothing is written.

    With `data_parallel` N > 1 the environments of each seed, if they are in JAX, are divided over N
    devices, the cores of a CPU or accelerators, and the seeds follow one another. A CPU has as many
    devices as the first run in a process asks for, or as `JAX_NUM_CPU_DEVICES` says.

    The policies are evaluated `num_evaluations` times on `eval_episodes` greedy and as many sampled
    episodes, and the best on `absolute_episodes` at the end. Numbers left open are at most 50, 32
    and 320, and fewer in a short run: evaluations take at most a fifth of its steps.

    `warm_start` is a run, or its folder, with whose parameters this one begins: with all of its
    learner but the replay buffer, or with the policies alone if `warm_start_part` is "actor". Its
    environment may be another one with the same shapes.

    Progress is shown unless `quiet`. `callbacks` are objects of `perla.Callback`, or functions that
    are called with the run's `Progress` after each evaluation; `progress.stop()` ends the run.
    Ctrl-C saves a checkpoint in `out` and raises `KeyboardInterrupt`; `perla.load(out).resume()`
    goes on. If a seed has NaN or infinite values, the run stops, or continues without that seed if
    `on_nonfinite` is "drop-seed". `log` names the loggers of a run with a folder: "tensorboard",
    "csv", "wandb", "mlflow", a list of these, or "none".

    Raises `UserError` for an unknown name, a value out of range, or a folder that is in use.
    """
    source = _source(warm_start)
    part = convert(warm_start_part, Part, name="warm_start_part")
    id, options = objects.identify(env), to_plain(dict(env_options or {}))
    run = RunData(
        env=id,
        env_options=options,
        algo=algo,
        preset=preset,
        config=configure(algo, preset, to_plain(settings)),
        steps=convert(to_plain(steps), Steps, name="steps"),
        seeds=read_seeds(to_plain(seeds)),
        data_parallel=convert(to_plain(data_parallel), Count, name="data_parallel"),
        num_evaluations=count(num_evaluations, "num_evaluations"),
        eval_episodes=count(eval_episodes, "eval_episodes"),
        absolute_episodes=count(absolute_episodes, "absolute_episodes"),
        warm_start=None if source is None else source.describe(part),
    )
    make_env = objects.factory(id, env, options)
    with interruptible():
        result = execute.train(
            run,
            None if out is None else Path(out),
            make_env=make_env,
            source=source,
            **execution(
                quiet=quiet,
                callbacks=callbacks,
                checkpoint_seconds=checkpoint_seconds,
                keep_checkpoints=keep_checkpoints,
                on_nonfinite=on_nonfinite,
                log=log,
            ),
        )
    return Run(result, trust=(id,))


def load(dir: str | PathLike[str], *, env: Any = None, trust: Trust = ()) -> Run:
    """The run in the folder `dir`, finished or not.

    Its results can be read whatever its environment is. To make an environment that is code, it
    must be named: `env` is its id or the function, or `trust` allows what the folder names. `env`
    is also the object or the function of a run that was given one: no file holds it.

    Raises `UserError` if `dir` is no run folder or is damaged.
    """
    folder = Folder.open(Path(dir))
    run = folder.run(None)
    if isinstance(env, str):
        trust, env = (env,), None
    make_env = None
    if env is not None:
        make_env = objects.factory(run.env, env, run.env_options)
        trust = (objects.identify(env),) if make_env is None else trust
    records, summary = folder.records(), folder.summary() if folder.finished else {}
    return Run(execute.Result(run, records, summary, folder.path, make_env=make_env), trust=trust)


def _source(run: Run | str | PathLike[str] | None) -> Source | None:
    """The checkpoint that a warm start takes. Raises `UserError` for a run without a folder."""
    dir = run.out if isinstance(run, Run) else run
    if run is not None and dir is None:
        raise UserError(f"warm_start = {run!r}: has no folder; train it with out=DIR")
    return None if dir is None else read_source(Path(dir))
