"""Learning in a one-step matrix game from different distributions of joint actions.

*On-policy* data are the joint actions of the learner's own agents; replay-based methods store them
in their buffer, as always. *Uniform* data are joint actions drawn uniformly for each collection, as
in QPLEX's experiment (Wang et al., 2021), whose replay buffer they fill. *Payoff-balanced* data are
drawn from a fixed set in which all payoffs are equally frequent, so that it contains the best one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from perla.algos.create import create
from perla.algos.protocol import LearnerState
from perla.envs.matrix import JointActionDistribution, MatrixGame
from perla.envs.wrappers import AutoReset
from perla.loops.anakin import UNOPTIMIZED
from perla.loops.rollout import begin, rollout
from perla.methods.method import Method
from perla.types import Array, Float, Int, Key, PRNGKeyArray

DataDistribution = Literal["on-policy", JointActionDistribution]
DATA_DISTRIBUTIONS: tuple[DataDistribution, ...] = get_args(DataDistribution)
BALANCED_SIZE = 4096
"""Joint actions in the payoff-balanced set."""
FAST_COMPILE = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": True}
"""Compiler options of programs that run for seconds: as fast, and compiled sooner."""


def outcomes(
    game: MatrixGame,
    config: Method,
    distributions: tuple[DataDistribution, ...],
    *,
    seeds: int,
    collections: int,
) -> Float[np.ndarray, "distribution seed"]:
    """Train on each data distribution; return the payoffs of the final greedy policies.

    A run has `collections` collections, each of one step in each of `config.num_envs` environments,
    followed by an update. In a game of one step only the reward depends on the joint action, so the
    joint actions of a distribution replace those of the agents in the trajectory, and the rewards
    are the payoffs of the former.
    """
    algorithm, envs = create(config, game.spec), AutoReset(game, config.num_envs)

    def learn(
        distribution: Int[Array, ""],
        learner: LearnerState,
        sampled: list[Int[Array, "collection env agent"]],
        key: PRNGKeyArray,
    ) -> Int[Array, " agent"]:
        key_init, key_steps = jax.random.split(key)

        def step(carry, inputs):
            learner, runner_state = carry
            key, progress, *others = inputs
            key_play, key_update = jax.random.split(key)
            runner_state, trajectory, _ = rollout(envs, learner.actor, runner_state, key_play, 1)
            joint = jnp.stack([trajectory.action[0], *others])[distribution]
            trajectory = trajectory._replace(
                action=joint[None],
                reward=jnp.broadcast_to(game.payoff(joint)[None, :, None], trajectory.reward.shape),
            )
            learner, _ = algorithm.update(learner, trajectory, key_update, progress)
            return (learner, runner_state), None

        start = learner, begin(envs, learner.actor, key_init)
        keys, progress = jax.random.split(key_steps, collections), jnp.linspace(0, 1, collections)
        (learner, runner_state), _ = jax.lax.scan(step, start, (keys, progress, *sampled))
        policy, _ = learner.actor(
            runner_state.observation, runner_state.hidden_state, runner_state.is_first
        )
        return policy.mode()[0]

    # One run for each pair of a distribution and a seed.
    chosen = np.repeat([DATA_DISTRIBUTIONS.index(each) for each in distributions], seeds)
    keys = jnp.tile(jax.random.split(jax.random.key(0), (seeds, 2)), (len(distributions), 1))
    keys_learner, keys_data = jax.vmap(jax.random.split, out_axes=1)(keys[:, 0])
    learners = map_entries(algorithm.init, keys_learner, options=UNOPTIMIZED)
    sampled = sample_joint_actions(
        game,
        get_args(JointActionDistribution),
        keys_data,
        collections=collections,
        num_envs=config.num_envs,
    )
    joint = map_entries(learn, chosen, learners, sampled, keys[:, 1])
    return np.asarray(game.payoff(jnp.asarray(joint))).reshape(len(distributions), seeds)


def sample_joint_actions(
    game: MatrixGame,
    distributions: tuple[JointActionDistribution, ...],
    keys: Key[Array, " key"],
    *,
    collections: int,
    num_envs: int,
) -> list[Int[np.ndarray | Array, "key collection env agent"]]:
    """Sample joint actions from each of `distributions`, with every key.

    This is a program of its own, the same for all methods, so that it is compiled once for all.
    """

    def sample(
        distribution: JointActionDistribution, key: PRNGKeyArray
    ) -> Int[Array, "collection env agent"]:
        count = collections * num_envs
        if distribution == "uniform":
            joint = game.sample_joint_actions(distribution, key, count)
        else:
            key_set, key_rows = jax.random.split(key)
            joint = jax.random.choice(
                key_rows, game.sample_joint_actions(distribution, key_set, BALANCED_SIZE), (count,)
            )
        return joint.reshape(collections, num_envs, -1)

    def sample_all(key: PRNGKeyArray) -> list[Int[Array, "collection env agent"]]:
        return [sample(distribution, key) for distribution in distributions]

    return map_entries(sample_all, keys, options=UNOPTIMIZED)


def map_entries(f: Callable[..., Any], *arrays: Any, options: dict[str, Any] = FAST_COMPILE) -> Any:
    """Map f over the first axis of `arrays`, compiled with `options`.

    On a CPU, where batches of small matrix products are slow, entries are computed one after
    another, and the results are NumPy arrays.
    """
    if jax.default_backend() != "cpu":
        return jax.jit(jax.vmap(f), compiler_options=options)(*arrays)
    program = jax.jit(f, compiler_options=options)
    leaves, tree = jax.tree.flatten(arrays)
    results = [program(*jax.tree.unflatten(tree, entry)) for entry in zip(*leaves, strict=True)]
    return jax.tree.map(lambda *each: np.stack(each), *results)
