"""The actor and the critic of a learner, fixed, as the diagnosis asks them."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from perla.algos.learner import Learner
from perla.algos.ppo import Algorithm
from perla.algos.protocol import Trajectory
from perla.algos.targets import bootstrap_values
from perla.algos.values import StateHead
from perla.envs.protocol import Env, HostEnv, Observation
from perla.errors import UserError
from perla.methods.ppo import GAE, PPO
from perla.nets.actors import Actor
from perla.nets.critics import AnyCritic
from perla.types import Actions, Array, Float


class FixedLearner(eqx.Module):
    """A learner between two updates."""

    algorithm: Algorithm = eqx.field(static=True)
    learner: Learner

    @property
    def actor(self) -> Actor:
        """The policies."""
        return self.learner.actor

    @property
    def bootstrapping(self) -> AnyCritic:
        """The critic from which returns bootstrap: the target critic if there is one."""
        has_target = self.algorithm.config.target is not None
        return self.learner.target if has_target else self.learner.critic

    def rewards(self, reward: Float[Array, "*batch agent"]) -> Float[Array, "*batch agent"]:
        """Rewards in the learner's units: standardised if the settings say so."""
        if not self.algorithm.config.normalize_rewards:
            return reward
        return self.learner.rewards.standardise(reward)

    def unroll(
        self, critic: AnyCritic, trajectory: Trajectory
    ) -> tuple[Float[Array, "time env agent"], Float[Array, "time env agent hidden"]]:
        """A critic's values along a trajectory, in the learner's units of rewards, and its hidden
        state after each step."""
        schedule = self.algorithm.schedule(self.learner, jnp.ones(()))
        evaluated = self.algorithm.evaluate(critic, self.learner, trajectory, _draws(), schedule)
        values = self.algorithm.scale(self.learner).restore(evaluated.estimated.value)
        return values, evaluated.hidden_states

    def bootstrap(
        self,
        policy: Any,
        action: Actions,
        observation: Observation,
        hidden_state: Float[Array, "agent hidden"],
    ) -> tuple[Float[Array, " agent"], Float[Array, "agent hidden"]]:
        """The value from which returns bootstrap at one state, in the learner's units of rewards,
        and the critic's hidden state after it."""
        algorithm, critic = self.algorithm, self.bootstrapping
        schedule = algorithm.schedule(self.learner, jnp.ones(())).marginal
        one = jax.tree.map(lambda x: x[None], observation)
        context, hidden_states = critic.context(one, hidden_state, jnp.zeros(1, bool))
        estimated = algorithm.value.estimate(critic, context[0], policy, _draws(), schedule, action)
        values = bootstrap_values(algorithm.value, algorithm.spec, estimated, action, observation)
        return algorithm.scale(self.learner).restore(values), hidden_states[0]


def _draws() -> Array:
    """The key of a sampled average over the others' policies: the same everywhere, so that the
    average is a function of the state and its samples add no noise."""
    return jax.random.key(0)


def check(algo: str, config: Any, env: Env | HostEnv) -> Env:
    """`env` itself. Raises `UserError` unless `config`, of the method `algo`, has λ-returns and
    values of states, and `env` can be branched and ends its episodes."""
    known = "ippo, mappo, happo, ia2c, maa2c or their perla variants"
    if not isinstance(config, PPO):
        raise UserError(f"{algo}: has no λ-returns to diagnose; use {known}")
    if not isinstance(config.returns, GAE):
        raise UserError(f"{algo} with returns 'n-step': has no λ-returns to diagnose; use 'gae'")
    if isinstance(env, HostEnv):
        raise UserError(
            f"{env.spec.id}: runs in processes and cannot be set back to a visited state, which "
            "diagnose branches from; use an environment in JAX"
        )
    if env.spec.limit is None:
        raise UserError(f"{env.spec.id}: has no step limit, and diagnose plays episodes to the end")
    if not isinstance(Algorithm(config, env.spec).value.head, StateHead):
        raise UserError(
            f"{algo}: its advantage is made of its critic alone, not of λ-returns; use {known}, "
            "with critic_form 'state-value'"
        )
    return env
