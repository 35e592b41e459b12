"""What becomes of learners of a one-step matrix game, by what they learn from.

On-policy, a learner sees what its own agents play; a replaying one keeps that, as it always does.
Under *uniform* data joint actions are drawn at random throughout, afresh for every collection, as
in QPLEX's experiment (Wang et al., 2021, whose replay they fill). *Balanced* data are a fixed set,
drawn once, in which every payoff is as frequent as any other: it is sure to hold the best one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from perla.algos.create import create
from perla.algos.protocol import LearnerState
from perla.envs.matrix import DataDistribution, MatrixGame
from perla.envs.wrappers import AutoReset
from perla.loops.rollout import begin, rollout
from perla.methods.recipes import Method
from perla.types import Array, Float, Int, Key, PRNGKeyArray

Regime = Literal["on-policy", DataDistribution]
REGIMES: tuple[Regime, ...] = get_args(Regime)
ROWS = 4096
"""Joint actions of the balanced set."""
BRISK = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": True}
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
    algorithm, copies = create(config, game.spec), AutoReset(game, config.num_envs)

    def learn(
        regime: Int[Array, ""],
        learner: LearnerState,
        played: list[Int[Array, "collection copy agent"]],
        key: PRNGKeyArray,
    ) -> Int[Array, " agent"]:
        key_scene, key_steps = jax.random.split(key)

        def step(carry, inputs):
            learner, runner_state = carry
            key, progress, *others = inputs
            key_play, key_update = jax.random.split(key)
            runner_state, trajectory, _ = rollout(copies, learner.actor, runner_state, key_play, 1)
            joint = jnp.stack([trajectory.action[0], *others])[regime]
            trajectory = trajectory._replace(
                action=joint[None],
                reward=jnp.broadcast_to(game.payoff(joint)[None, :, None], trajectory.reward.shape),
            )
            learner, _ = algorithm.update(learner, trajectory, key_update, progress)
            return (learner, runner_state), None

        start = learner, begin(copies, learner.actor, key_scene)
        keys, progress = jax.random.split(key_steps, collections), jnp.linspace(0, 1, collections)
        (learner, runner_state), _ = jax.lax.scan(step, start, (keys, progress, *played))
        policy, _ = learner.actor(
            runner_state.observation, runner_state.hidden_state, runner_state.is_first
        )
        return policy.mode()[0]

    # A run for each of the regimes with each of the seeds.
    chosen = np.repeat([REGIMES.index(regime) for regime in regimes], seeds)
    keys = jnp.tile(jax.random.split(jax.random.key(0), (seeds, 2)), (len(regimes), 1))
    keys_learner, keys_data = jax.vmap(jax.random.split, out_axes=1)(keys[:, 0])
    learners = every(algorithm.init, keys_learner, options=ONCE)
    played = draws(game, get_args(DataDistribution), keys_data, collections, config.num_envs)
    joint = every(learn, chosen, learners, played, keys[:, 1])
    return np.asarray(game.payoff(jnp.asarray(joint))).reshape(len(regimes), seeds)


def draws(
    game: MatrixGame,
    data: tuple[DataDistribution, ...],
    keys: Key[Array, " key"],
    collections: int,
    copies: int,
) -> list[Int[np.ndarray | Array, "key collection copy agent"]]:
    """Joint actions as each of `data` has them, with every key: by a program of their own, which
    is the same whatever learns from them, so that the cache of programs has it for all methods."""

    def draw(each: DataDistribution, key: PRNGKeyArray) -> Int[Array, "collection copy agent"]:
        count = collections * copies
        if each == "uniform":
            joint = game.sample_joint_actions(each, key, count)
        else:
            key_set, key_rows = jax.random.split(key)
            joint = jax.random.choice(
                key_rows, game.sample_joint_actions(each, key_set, ROWS), (count,)
            )
        return joint.reshape(collections, copies, -1)

    def drawn(key: PRNGKeyArray) -> list[Int[Array, "collection copy agent"]]:
        return [draw(each, key) for each in data]

    return every(drawn, keys, options=ONCE)


def every(f: Callable[..., Any], *arrays: Any, options: dict[str, Any] = BRISK) -> Any:
    """f of the entries of `arrays`, along their first axis: of all at once, or, on a CPU, where
    batches of small matrix products are slow, in turn, and then in NumPy's arrays."""
    if jax.default_backend() != "cpu":
        return jax.jit(jax.vmap(f), compiler_options=options)(*arrays)
    program = jax.jit(f, compiler_options=options)
    leaves, tree = jax.tree.flatten(arrays)
    found = [program(*jax.tree.unflatten(tree, entry)) for entry in zip(*leaves, strict=True)]
    return jax.tree.map(lambda *each: np.stack(each), *found)
