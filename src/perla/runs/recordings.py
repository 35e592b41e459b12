"""Episodes of a run's policies in full, with the values of its critic."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.algos.protocol import CriticValues, HasCritic
from perla.envs.checks import explain_errors
from perla.envs.protocol import Env, HostEnv
from perla.envs.registry import Trust
from perla.errors import UserError
from perla.keys import apart
from perla.loops.protocol import AnyTrainer
from perla.loops.record import Recording, record, record_host
from perla.loops.streams import Stream, number, stream_key
from perla.runs import execute
from perla.runs.play import best_greedy_seed
from perla.runs.spec import Run, plan_evaluations
from perla.runs.store import Folder

MOST_FRAMES = 1000
"""The most steps of an episode that is recorded; a longer one is refused."""


class Episode(NamedTuple):
    """An episode of a run's best policy, which takes the most likely actions."""

    run: Run
    env: Env | HostEnv
    """The environment. A host environment is closed."""
    seed: int
    recording: Recording
    values: CriticValues | None
    """The values of the run's last critic; None if the learner has none to ask."""
    returns: np.ndarray | None
    """The returns of the greedy episodes of the run's absolute metric, from which it was chosen;
    None: it is an episode of its own, in a host environment."""


def record_run(
    folder: Path, *, trust: Trust = (), say: Callable[[str], None] = lambda text: None
) -> Episode:
    """An episode of the finished run in `folder`: of the best parameters of its best seed, the one
    with the median return of the greedy episodes of the absolute metric.

    Raises `UserError` as `execute.load` does, and if the run is not finished, the environment fails
    or episodes may be longer than `MOST_FRAMES`.
    """
    summary = Folder.open(folder).summary()
    run, env, trainer, exported = execute.load(folder, trust=trust, say=say)
    seed = best_greedy_seed(summary)
    with closing(trainer), explain_errors(f"{env.spec.id} cannot be recorded"):
        if (env.spec.limit or 0) > MOST_FRAMES:
            raise UserError(
                f"{env.spec.id}: episodes of up to {env.spec.limit} steps; at most {MOST_FRAMES} "
                "are recorded"
            )
        returns, recording = median_episode(run, env, trainer, exported, seed)
        learner = _of_seed(exported.learner, run.seeds.index(seed))
        values = critic_values(trainer, learner, recording)
        return Episode(run, env, seed, recording, values, returns)


def median_episode(
    run: Run, env: Env | HostEnv, trainer: AnyTrainer, exported: Any, seed: int
) -> tuple[np.ndarray | None, Recording]:
    """The returns of the absolute metric's greedy episodes and the one with the median return; in a
    host environment an episode of its own, without returns."""
    index = run.seeds.index(seed)
    actor = trainer.actor(exported, index, best=True)
    if isinstance(env, HostEnv):
        return None, record_host(env, actor, stream_key(jax.random.key(seed), Stream.FILM))
    plan = plan_evaluations(run, env)
    key = jax.random.wrap_key_data(jnp.asarray(exported.key[index]))
    # As the trainer plays them: in parts, as many greedy episodes and then as many sampled ones.
    greedy = jnp.arange(2 * plan.episodes) < plan.episodes
    parts = -(-plan.absolute // plan.episodes)
    keys = [apart(key, number(Stream.ABSOLUTE, part)) for part in range(parts)]
    played = [trainer.play(actor, each, greedy).returns[: plan.episodes] for each in keys]
    returns = np.concatenate([np.asarray(each) for each in played])[: plan.absolute]
    chosen = int(np.argsort(returns, kind="stable")[(len(returns) - 1) // 2])
    part, place = divmod(chosen, plan.episodes)
    return returns, record(env, actor, keys[part], greedy, place)._replace(number=chosen)


def critic_values(trainer: AnyTrainer, learner: Any, recording: Recording) -> CriticValues | None:
    """The values of a learner's critic along an episode."""
    algorithm = getattr(trainer, "algorithm", None)
    if not isinstance(algorithm, HasCritic):
        return None
    values = jax.jit(algorithm.critic_values)(learner, recording.trajectory, jax.random.key(0))
    return jax.device_get(values)


def _of_seed(states: Any, index: int) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x[index]), states)
