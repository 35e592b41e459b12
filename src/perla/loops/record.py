"""Episodes in full: states, actions, policies and rewards of every step, to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.algos.protocol import Trajectory
from perla.distributions import EpsilonGreedy, Perturbed
from perla.envs.protocol import Env, HostEnv, Observation
from perla.loops.evaluate import Playing, begin, episode_limit, play_step
from perla.nets.actors import AnyActor
from perla.types import Array, Bool, PRNGKeyArray


class Recording(NamedTuple):
    """One episode."""

    number: int
    """Its number among the episodes that were played."""
    states: list[Any]
    """The states of an environment in JAX, or the pictures of a host environment: one more than
    there are steps."""
    trajectory: Trajectory
    """The steps, `[time, 1, ...]`."""
    probs: np.ndarray | None
    """The probability of each action, `[time, agent, action]`; None if actions are continuous."""
    utilities: np.ndarray | None
    """The action values of Q-learners, `[time, agent, action]`; None for other policies."""

    @property
    def rewards(self) -> np.ndarray:
        """The reward of each step, averaged over agents: `[time]`."""
        return np.asarray(self.trajectory.reward, np.float64)[:, 0].mean(-1)


class Step(NamedTuple):
    """One step of an episode, without a batch axis. The policy's probabilities and utilities are as
    in `Recording`."""

    observation: Observation
    hidden_state: Any
    policy: Any
    probs: Any
    utilities: Any
    action: Any
    reward: Any
    terminated: Any
    truncated: Any
    final: Observation


def record(
    env: Env,
    actor: AnyActor,
    key: PRNGKeyArray,
    greedy: Bool[Array, " episode"],
    number: int,
) -> Recording:
    """Episode `number` of those that `evaluate` plays with the same arguments."""

    @jax.jit
    def step(playing: Playing) -> tuple[Playing, tuple[Any, Step]]:
        after, played = play_step(env, actor, key_run, greedy, playing)
        timestep = played.timestep
        made = Step(
            playing.observation,
            playing.hidden_state,
            *_describe(played.policy.given(played.action)),
            played.action,
            timestep.reward,
            timestep.terminated,
            timestep.truncated,
            timestep.final,
        )
        return after, own((after.state, made))

    def own(tree: Any) -> Any:
        # The ε of ε-greedy policies is one number for all episodes.
        return jax.tree.map(lambda x: x[number] if x.ndim else x, tree)

    key_run, playing = jax.jit(partial(begin, env, episodes=greedy.shape[0]))(actor, key)
    states, steps = [jax.device_get(own(playing.state))], []
    for _ in range(episode_limit(env)):
        playing, part = step(playing)
        state, made = jax.device_get(part)
        states.append(state)
        steps.append(made)
        if made.terminated or made.truncated:
            break
    return _recording(number, states, steps, own(playing.hidden_state))


def record_host(
    env: HostEnv, actor: AnyActor, key: PRNGKeyArray, *, greedy: bool = True
) -> Recording:
    """One episode in a host environment, with a picture of every state."""
    words = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]
    observation = env.reset(int(np.random.SeedSequence(words).generate_state(1)[0]) >> 1)
    pictures, hidden_state, steps = [env.render()], actor.initial_state(()), []

    @jax.jit
    def act(key, observation, hidden_state, is_first):
        key_action, key_actor = jax.random.split(key)
        policy, after = actor(observation, hidden_state, is_first, key_actor)
        action = policy.mode() if greedy else policy.sample(key_action)
        described = _describe(policy.given(action))
        return described, action, actor.update_state(after, action)

    for time in range(episode_limit(env)):
        key_step = jax.random.fold_in(key, time)
        described, action, after = jax.device_get(
            act(key_step, observation, hidden_state, time == 0)
        )
        timestep = env.step(env.spec.bounded(action))
        pictures.append(env.render())
        ended = np.bool_(timestep.terminated), np.bool_(timestep.truncated)
        made = action, timestep.reward, *ended, timestep.observation
        policy, probs, utilities = described
        steps.append(Step(observation, hidden_state, policy, probs, utilities, *made))
        observation, hidden_state = timestep.observation, after
        if any(ended):
            break
    return _recording(0, pictures, steps, hidden_state)


def _describe(policy: Any) -> tuple[Any, Array | None, Array | None]:
    """A policy, its probabilities and its utilities."""
    greedy = policy.settled if isinstance(policy, Perturbed) else policy
    utilities = greedy.values if isinstance(greedy, EpsilonGreedy) else None
    return policy, getattr(policy, "probs", None), utilities


def _recording(
    number: int, states: list[Any], steps: Sequence[Step], hidden_state: Any
) -> Recording:
    probs, utilities = (
        None if getattr(steps[0], name) is None else np.stack([getattr(s, name) for s in steps])
        for name in ("probs", "utilities")
    )
    return Recording(number, states, trajectory(steps, hidden_state), probs, utilities)


def trajectory(steps: Sequence[Step], last_hidden_state: Any) -> Trajectory:
    """The steps of one episode with their time axis and an environment axis of length 1."""
    stacked = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)[:, None]), *steps)
    is_first = jnp.arange(len(steps))[:, None] == 0
    return Trajectory(
        observation=stacked.observation,
        is_first=is_first,
        valid=jnp.ones_like(is_first),
        hidden_state=stacked.hidden_state,
        action=stacked.action,
        policy=stacked.policy,
        reward=stacked.reward,
        terminated=stacked.terminated,
        truncated=stacked.truncated,
        final=stacked.final,
        last=jax.tree.map(lambda x: x[-1], stacked.final),
        last_is_first=jnp.ones(1, bool),
        last_hidden_state=jnp.asarray(last_hidden_state)[None],
    )
