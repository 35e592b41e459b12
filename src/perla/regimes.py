"""What becomes of learners of a one-step matrix game, by what they learn from.

On-policy, a learner sees what its own agents play; a replaying one keeps that, as it always does.
Under *uniform* data joint actions are drawn at random throughout, afresh for every collection, as
in QPLEX's experiment (Wang et al., 2021, whose replay they fill). *Balanced* data are a fixed set,
drawn once, in which every payoff is as frequent as any other: it is sure to hold the best one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from perla.algos.create import create
from perla.algos.protocol import LearnerState
from perla.envs.matrix import Data, MatrixGame
from perla.envs.wrappers import AutoReset
from perla.loops.rollout import begin, rollout
from perla.methods.recipes import Method
from perla.types import Array, Float, Int, PRNGKeyArray

Regime = Literal["on-policy", "uniform", "balanced"]
REGIMES: tuple[Regime, ...] = get_args(Regime)
ROWS = 4096
"""Joint actions of the balanced set."""
BRISK = {"xla_backend_optimization_level": 1}
"""How programs are compiled that run for seconds: they are no slower, and ready sooner."""
ONCE = {"xla_backend_optimization_level": 0}
"""How programs are compiled that run once."""


def outcomes(
    game: MatrixGame,
    config: Method,
    regimes: tuple[Regime, ...],
    *,
    seeds: int,
    collections: int,
) -> Float[np.ndarray, "regime seed"]:
    """What the greedy policies of every seed earn after so many collections, each a play of
    `config.copies` copies and an update.

    In a game of one step nothing but the reward depends on what is played. So the joint actions of
    a regime take the place of those that the agents chose, and the payoffs follow.
    """
    algorithm, copies = create(config, game.spec), AutoReset(game, config.copies)

    def one(
        regime: Int[Array, ""], learner: LearnerState, key: PRNGKeyArray
    ) -> Int[Array, " agent"]:
        key_source, key_scene, key_steps = jax.random.split(key, 3)
        uniform, balanced = (source(game, data, key_source) for data in ("uniform", "balanced"))

        def step(carry, inputs):
            learner, scene = carry
            key, progress = inputs
            key_play, key_uniform, key_balanced, key_update = jax.random.split(key, 4)
            scene, trajectory, _ = rollout(copies, learner.actor, scene, key_play, 1)
            others = uniform(key_uniform, config.copies), balanced(key_balanced, config.copies)
            joint = jnp.stack([trajectory.action[0], *others])[regime]
            trajectory = trajectory._replace(
                action=joint[None],
                reward=jnp.broadcast_to(game.payoff(joint)[None, :, None], trajectory.reward.shape),
            )
            learner, _ = algorithm.update(learner, trajectory, key_update, progress)
            return (learner, scene), None

        keys = jax.random.split(key_steps, collections)
        start = learner, begin(copies, learner.actor, key_scene)
        (learner, scene), _ = jax.lax.scan(step, start, (keys, jnp.linspace(0.0, 1.0, collections)))
        policy, _ = learner.actor(scene.observation, scene.memory, scene.fresh)
        return policy.mode()[0]

    key_learners, key_runs = jax.random.split(jax.random.key(0))
    init = jax.jit(jax.vmap(algorithm.init), compiler_options=ONCE)
    learners = init(jax.random.split(key_learners, seeds))
    keys = jax.random.split(key_runs, seeds)

    @partial(jax.jit, compiler_options=BRISK)
    def learn(learners, keys, chosen):
        return every(lambda regime: every(partial(one, regime), learners, keys), chosen)

    joint = learn(learners, keys, jnp.array([REGIMES.index(regime) for regime in regimes]))
    return np.asarray(game.payoff(joint))


def source(
    game: MatrixGame, data: Data, key: PRNGKeyArray
) -> Callable[[PRNGKeyArray, int], Int[Array, "count agent"]]:
    """Draws so many joint actions with a key, as `data` has them."""
    if data == "uniform":
        return partial(game.draw, data)
    rows = game.draw(data, key, ROWS)
    return lambda key, count: jax.random.choice(key, rows, (count,))


def every(f: Callable[..., Any], *arrays: Any) -> Any:
    """f of all entries of `arrays`: at once, or, on a CPU, where batches of small matrix products
    are slow, in turn."""
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda entry: f(*entry), arrays)
    return jax.vmap(f)(*arrays)
