"""Episodes in full: states, actions, policies and rewards of every step, to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.algos.protocol import Trajectory
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

    @property
    def rewards(self) -> np.ndarray:
        """The reward of each step, averaged over agents: `[time]`."""
        return np.asarray(self.trajectory.reward, np.float64)[:, 0].mean(-1)


class Step(NamedTuple):
    """One step of an episode, without a batch axis."""

    observation: Observation
    hidden_state: Any
    policy: Any
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
            played.policy.given(played.action),
            played.action,
            timestep.reward,
            timestep.terminated,
            timestep.truncated,
            timestep.final,
        )
        return after, own((after.state, made))

    def own(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[number], tree)

    key_run, playing = jax.jit(partial(begin, env, episodes=greedy.shape[0]))(actor, key)
    states, steps = [jax.device_get(own(playing.state))], []
    for _ in range(episode_limit(env)):
        playing, part = step(playing)
        state, made = jax.device_get(part)
        states.append(state)
        steps.append(made)
        if made.terminated or made.truncated:
            break
    return Recording(number, states, trajectory(steps, np.asarray(own(playing.hidden_state))))


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
        return policy.given(action), action, actor.update_state(after, action)

    for time in range(episode_limit(env)):
        key_step = jax.random.fold_in(key, time)
        policy, action, after = jax.device_get(
            act(key_step, observation, hidden_state, time == 0)
        )
        timestep = env.step(env.spec.bounded(action))
        pictures.append(env.render())
        ended = np.bool_(timestep.terminated), np.bool_(timestep.truncated)
        made = observation, hidden_state, policy, action, timestep.reward, *ended
        steps.append(Step(*made, timestep.observation))
        observation, hidden_state = timestep.observation, after
        if any(ended):
            break
    return Recording(0, pictures, trajectory(steps, np.asarray(hidden_state)))


def trajectory(steps: Sequence[Step], last_hidden_state: Any) -> Trajectory:
    """The steps of one episode with their time axis and an environment axis of length 1."""
    stacked = jax.tree.map(lambda *x: np.stack(x)[:, None], *steps)
    is_first = np.arange(len(steps))[:, None] == 0
    return Trajectory(
        observation=stacked.observation,
        is_first=is_first,
        valid=np.ones_like(is_first),
        hidden_state=stacked.hidden_state,
        action=stacked.action,
        policy=stacked.policy,
        reward=stacked.reward,
        terminated=stacked.terminated,
        truncated=stacked.truncated,
        final=stacked.final,
        last=jax.tree.map(lambda x: x[-1], stacked.final),
        last_is_first=np.ones(1, bool),
        last_hidden_state=last_hidden_state[None],
    )
