"""The actor-critic learner: one PPO whose variants are arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from perla import returns
from perla.algos import telemetry
from perla.algos.actor_critic import check, create_actor, create_critic
from perla.algos.alive import LossMask, mask_dead_agents
from perla.algos.batch import Batch, minibatches
from perla.algos.descent import apply_gradients, create_optimiser, residual, update_target
from perla.algos.normalise import RunningMeanStd, mean, variance
from perla.algos.protocol import Trajectory
from perla.algos.values import (
    Estimate,
    MarginalSchedule,
    advantage_is_critics,
    bootstrap,
    chosen,
    estimate,
    prediction,
)
from perla.distributions import Policy
from perla.envs.protocol import Observation, Spec
from perla.methods.estimators import CANDIDATES, Sampled
from perla.methods.ppo import PPO, NStep
from perla.methods.values import Embedded
from perla.nets.actors import Actor
from perla.nets.critics import AnyCritic
from perla.types import Actions, Array, Float, Int, Metrics, PRNGKeyArray

LOOKS = 2
"""Steps of every copy, in an update, at which the average over the others' actions is looked at."""


class Learner(eqx.Module):
    """All that learning changes."""

    actor: Actor
    critic: AnyCritic
    target: AnyCritic
    """What targets bootstrap from; the critic itself where there is no target critic."""
    actor_optimiser: optax.OptState
    critic_optimiser: optax.OptState
    critic_hidden_state: Float[Array, "env agent hidden"]
    """The critic's memory before the next step."""
    rewards: RunningMeanStd
    targets: RunningMeanStd
    updates: Int[Array, ""]
    candidate: Int[Array, ""]
    """The place on its estimator's ladder: how many joint actions a k of `auto` is now."""


Policies = tuple[Actor, optax.OptState]
"""An actor and its optimiser's state."""


class Schedule(NamedTuple):
    """What follows a schedule."""

    rate: Float[Array, ""]
    """By what the learning rates are multiplied."""
    entropy: Float[Array, ""]
    """Weight of the entropy bonus."""
    marginal: MarginalSchedule
    """What of an average over the others' actions changes."""


class Algorithm:
    """PPO on one world: `init` makes a learner, `update` improves it by a trajectory.

    Raises `UserError` for settings that do not fit each other or the world.
    """

    def __init__(self, config: PPO, spec: Spec) -> None:
        self.config, self.spec = config, spec
        self.sequence = config.sequence(spec.limit)
        check(config, spec)
        self.actor_optimiser, self.critic_optimiser = (
            create_optimiser(config.optimizer, rate, config.max_grad_norm)
            for rate in (config.lr, config.critic_lr or config.lr)
        )

    def init(self, key: PRNGKeyArray) -> Learner:
        """A learner that has seen nothing."""
        key_actor, key_critic = jax.random.split(key)
        actor = create_actor(self.config, self.spec, key_actor)
        critic = create_critic(self.config, self.spec, key_critic)
        if self.config.order == "sequential":
            actor_optimiser = jax.vmap(self.actor_optimiser.init)(actor.unstack())
        else:
            actor_optimiser = self.actor_optimiser.init(actor)
        return Learner(
            actor=actor,
            critic=critic,
            target=critic,
            actor_optimiser=actor_optimiser,
            critic_optimiser=self.critic_optimiser.init(critic),
            critic_hidden_state=critic.body.initial_state((self.config.num_envs,)),
            rewards=RunningMeanStd.create(),
            targets=RunningMeanStd.create(),
            updates=jnp.int32(0),
            candidate=jnp.int32(len(CANDIDATES) // 2),
        )

    def update(
        self,
        learner: Learner,
        trajectory: Trajectory,
        key: PRNGKeyArray,
        progress: Float[Array, ""],
    ) -> tuple[Learner, Metrics]:
        """Targets from the trajectory, then several passes over it.

        `progress` is the share of the run that is done, for what changes with it.
        """
        schedule = self.schedule(learner, progress)
        key_values, key_epochs, key_order = jax.random.split(key, 3)
        learner, batch, metrics = self.prepare(learner, trajectory, key_values, schedule)
        if self.config.order == "sequential":
            order = jax.random.permutation(key_order, self.spec.agents)
            learner, losses = self.in_turn(learner, batch, order, key_epochs, schedule)
        else:
            learner, losses = self.at_once(learner, batch, key_epochs, schedule)
        learner = replace(learner, updates=learner.updates + 1)
        learner = replace(learner, target=self.next_target(learner))
        return learner, metrics | losses

    def schedule(self, learner: Learner, progress: Float[Array, ""]) -> Schedule:
        """Where the schedules stand after `progress` (0 to 1) of the run."""
        config, left = self.config, jnp.clip(1.0 - progress, 0.0, 1.0)
        final = config.ent_coef if config.ent_coef_final is None else config.ent_coef_final
        return Schedule(
            rate=left if config.anneal_lr else jnp.ones(()),
            entropy=final + (config.ent_coef - final) * left,
            marginal=MarginalSchedule(optimism=left, candidate=learner.candidate),
        )

    def prepare(
        self, learner: Learner, trajectory: Trajectory, key: PRNGKeyArray, schedule: Schedule
    ) -> tuple[Learner, Batch, Metrics]:
        """Everything that stays fixed while the passes are made."""
        config = self.config
        key_target, key_boundary, key_value, key_look = jax.random.split(key, 4)
        rewards = trajectory.reward
        if config.normalize_rewards:
            learner = replace(learner, rewards=learner.rewards.update(rewards, trajectory.valid))
            rewards = learner.rewards.standardise(rewards)

        policy, action = trajectory.policy, trajectory.action

        def look(critic: AnyCritic, key: PRNGKeyArray):
            context, hidden_states = critic.context(
                trajectory.observation, learner.critic_hidden_state, trajectory.is_first
            )
            values = estimate(config.value, critic, context, policy, key, schedule.marginal, action)
            return context, hidden_states, values

        # Targets: what the target critic says along the trajectory and at its episodes' ends.
        target = learner.critic if config.target is None else learner.target
        context, hidden_states, values = look(target, key_target)
        final_values, last_values = self.boundary_values(
            learner, target, trajectory, hidden_states, key_boundary, schedule
        )
        along_values = self.following(values, action, trajectory.observation)
        along_values = jnp.concatenate([along_values, last_values[None]])
        targets = self.targets(
            rewards, self.raw(learner, along_values), self.raw(learner, final_values), trajectory
        )

        # The critic itself: its baseline and its prediction before the update.
        if config.target is not None:
            context, hidden_states, values = look(learner.critic, key_value)
        predicted = prediction(config.value, learner.critic, context, action, values)
        batch = Batch(
            observation=trajectory.observation,
            is_first=trajectory.is_first,
            valid=trajectory.valid,
            hidden_state=trajectory.hidden_state,
            critic_hidden_state=jnp.concatenate(
                [learner.critic_hidden_state[None], hidden_states[:-1]]
            ),
            action=action,
            policy=policy,
            prediction=predicted,
            target=targets,
            advantage=self.advantages(learner, values, policy, action, targets),
        )
        valid = batch.loss_mask
        error = targets - self.raw(learner, predicted)
        unexplained = variance(error, valid) / (variance(targets, valid) + 1e-8)
        metrics = {
            "td_error": jnp.sqrt(mean(error**2, valid)),
            "explained_variance": 1.0 - unexplained,
            "value": mean(self.raw(learner, values.value), valid),
        }
        if isinstance(config.value, Embedded):
            learner, more = self.telemetry(
                learner, context, trajectory, valid, values, targets, error, key_look, schedule
            )
            metrics |= more
        if config.normalize_values:
            learner = replace(learner, targets=learner.targets.update(targets, valid))
        return replace(learner, critic_hidden_state=hidden_states[-1]), batch, metrics

    def telemetry(
        self,
        learner: Learner,
        context: Float[Array, "time env agent width"],
        trajectory: Trajectory,
        loss_mask: LossMask,
        values: Estimate,
        targets: Float[Array, "time env agent"],
        error: Float[Array, "time env agent"],
        key: PRNGKeyArray,
        schedule: Schedule,
    ) -> tuple[Learner, Metrics]:
        """What the average over the others' actions is like at a few of the steps, and the number
        of joint actions that the next update takes in it."""
        value, unit = self.config.value, self.unit(learner)
        assert isinstance(value, Embedded)
        steps = (context, trajectory.policy, trajectory.action, values, targets, loss_mask)
        every = -(-len(targets) // LOOKS)
        steps = jax.tree.map(lambda x: x[::every], steps)
        context, policy, action, values, targets, valid = steps
        found = telemetry.look(
            value, learner.critic, context, policy, action, values, key, schedule.marginal
        )
        samples = telemetry.size(value, policy, schedule.marginal)
        metrics = telemetry.report(found, valid, unit) | {
            "joint_actions": samples,
            "average_flops": telemetry.cost(
                value, learner.critic, context, policy, schedule.marginal
            ),
        }
        for name, view in found.views.items():
            advantage = self.advantages(learner, view, policy, action, targets)
            metrics[f"gradient_variance_{name}"] = telemetry.gradient_variance(
                policy, action, advantage, valid
            )
        if isinstance(value.estimator, Sampled) and value.estimator.num_samples == "auto":
            assert found.noise is not None
            noise = unit**2 * mean(found.noise, valid)
            allowed = value.estimator.tolerance**2 * mean(error**2, loss_mask)
            learner = replace(learner, candidate=telemetry.candidate(noise, samples, allowed))
        return learner, metrics

    def boundary_values(
        self,
        learner: Learner,
        critic: AnyCritic,
        trajectory: Trajectory,
        hidden_states: Float[Array, "time env agent hidden"],
        key: PRNGKeyArray,
        schedule: Schedule,
    ) -> tuple[Float[Array, "time env agent"], Float[Array, "env agent"]]:
        """The values of truncated episodes' final observations, and of the last observation.

        An episode that is truncated has lasted `limit` steps, so few are in a horizon: only they
        are gathered and evaluated. Entries of steps that were not truncated are zero. For a
        counterfactual value an action is drawn, as none has been taken there.
        """
        time, env = trajectory.truncated.shape
        limit = self.spec.limit
        most = 0 if limit is None else env * (1 + (time - 1) // limit)
        (ended,) = jnp.nonzero(trajectory.truncated.reshape(-1), size=most, fill_value=time * env)

        def gather(steps, last):
            steps = steps.reshape(time * env, *steps.shape[2:])
            return jnp.concatenate([steps.at[ended].get(mode="clip"), last])

        observation = jax.tree.map(gather, trajectory.final, trajectory.last)
        is_first = jnp.concatenate([jnp.zeros(most, bool), trajectory.last_is_first])
        actor_hidden_states = jnp.concatenate(
            [trajectory.hidden_state[1:], trajectory.last_hidden_state[None]]
        )
        policy, _ = learner.actor(
            observation, gather(actor_hidden_states, trajectory.last_hidden_state), is_first
        )
        context, _ = critic.context(
            jax.tree.map(lambda x: x[None], observation),
            gather(hidden_states, hidden_states[-1]),
            is_first[None],
        )
        value, action = self.config.value, policy.sample(jax.random.fold_in(key, 1))
        estimated = estimate(value, critic, context[0], policy, key, schedule.marginal, action)
        values = self.following(estimated, action, observation)
        final = jnp.zeros((time * env, self.spec.agents)).at[ended].set(values[:most], mode="drop")
        return final.reshape(time, env, -1), values[most:]

    def following(
        self, values: Estimate, action: Actions, observation: Observation
    ) -> Float[Array, "*batch agent"]:
        """What returns that lead to these states go on with."""
        found = bootstrap(self.config.value, values, action)
        return mask_dead_agents(found, observation, common=self.spec.reward == "common")

    def targets(
        self,
        rewards: Float[Array, "time env agent"],
        values: Float[Array, "states env agent"],
        final_values: Float[Array, "time env agent"],
        trajectory: Trajectory,
    ) -> Float[Array, "time env agent"]:
        """The returns that the critic learns."""
        kind, gamma = self.config.returns, self.config.gamma

        def one(rewards, values, final_values, terminated, truncated):
            following = returns.successors(values, final_values, terminated, truncated)
            ended = terminated | truncated
            if isinstance(kind, NStep):
                return returns.n_step(rewards, following, ended, gamma=gamma, n=kind.n_step)
            return returns.lambda_returns(
                rewards, following, ended, gamma=gamma, lam=kind.gae_lambda
            )

        each_agent = jax.vmap(one, in_axes=(1, 1, 1, None, None), out_axes=1)
        each_copy = jax.vmap(each_agent, in_axes=1, out_axes=1)
        return each_copy(rewards, values, final_values, trajectory.terminated, trajectory.truncated)

    def advantages(
        self,
        learner: Learner,
        values: Estimate,
        policy: Policy,
        action: Actions,
        targets: Float[Array, "*batch agent"],
    ) -> Float[Array, "*batch agent"]:
        """How much better the actions were than the policy, in rewards' units."""
        if advantage_is_critics(self.config.value):
            # Aᵢ = Q̂ᵢ(s, aᵢ) − Σₐ πᵢ(a) Q̂ᵢ(s, a)
            gain = chosen(values.action_values, action) - values.value
            return gain * self.unit(learner)
        # Aᵢ = G − V̂ᵢ(s): target less critic, where the paper's Algorithm 1 has the signs reversed
        return targets - self.raw(learner, values.value)

    def at_once(
        self, learner: Learner, batch: Batch, key: PRNGKeyArray, schedule: Schedule
    ) -> tuple[Learner, Metrics]:
        """All passes, in each of which the critic moves, if it has not before, and all agents'
        policies do."""
        critic_metrics: Metrics = {}
        if self.config.critic_epochs is not None:
            learner, batch, critic_metrics = self.critic_first(learner, batch, key, schedule)

        def step(learner: Learner, part: Batch, key: PRNGKeyArray):
            advantage, critic_metrics = part.advantage, Metrics()
            if self.config.critic_epochs is None:
                learner, advantage, critic_metrics = self.improve_critic(
                    learner, part, key, schedule
                )
            policies = learner.actor, learner.actor_optimiser
            (actor, optimiser), metrics = self.improve_actor(policies, part, advantage, schedule)
            learner = replace(learner, actor=actor, actor_optimiser=optimiser)
            return learner, metrics | critic_metrics

        learner, metrics = self.passes(step, learner, batch, key)
        return learner, jax.tree.map(jnp.mean, metrics | critic_metrics)

    def critic_first(
        self, learner: Learner, batch: Batch, key: PRNGKeyArray, schedule: Schedule
    ) -> tuple[Learner, Batch, Metrics]:
        """The critic's own passes; beside them the batch with the advantages that are by the critic
        that comes of them, where these are refreshed."""
        key_passes, key_values = jax.random.split(jax.random.fold_in(key, 1))

        def criticise(learner: Learner, part: Batch, key: PRNGKeyArray):
            learner, _, metrics = self.improve_critic(learner, part, key, schedule)
            return learner, metrics

        epochs = self.config.critic_epochs
        learner, metrics = self.passes(criticise, learner, batch, key_passes, epochs=epochs)
        _, (advantage, _) = self.critic_loss(learner.critic, learner, batch, key_values, schedule)
        return learner, batch._replace(advantage=advantage), jax.tree.map(jnp.mean, metrics)

    def in_turn(
        self,
        learner: Learner,
        batch: Batch,
        order: Int[Array, " agent"],
        key: PRNGKeyArray,
        schedule: Schedule,
    ) -> tuple[Learner, Metrics]:
        """All of the critic's passes; then, agent by agent in this order, all of a policy's, by
        advantages weighed with what those before it have become (HAPPO; Kuba et al., 2022)."""

        def criticise(learner: Learner, part: Batch, key: PRNGKeyArray):
            learner, advantage, metrics = self.improve_critic(learner, part, key, schedule)
            return learner, (advantage, metrics)

        advantages: tuple[Array, ...] = ()
        if self.config.critic_epochs is None:
            learner, (advantage, critic_metrics) = self.passes(criticise, learner, batch, key)
            advantages = (advantage,)
        else:
            learner, batch, critic_metrics = self.critic_first(learner, batch, key, schedule)

        def improve(policy: Policies, part: Batch, _: PRNGKeyArray, refreshed: Any = None):
            advantage = part.advantage if refreshed is None else refreshed
            return self.improve_actor(policy, part, advantage, schedule)

        def turn(carry: tuple[Policies, Float[Array, "time env 1"]], agent: Int[Array, ""]):
            everyone, weight = carry
            data = batch.of(agent)._replace(weight=weight)
            of_agent = partial(jax.lax.dynamic_index_in_dim, index=agent, axis=-1)
            own = jax.tree.map(lambda x: x[agent], everyone)
            own, metrics = self.passes(improve, own, data, key, *map(of_agent, advantages))
            actor, _ = own
            policy, _ = actor.unroll(data.observation, data.hidden_state[0], data.is_first)
            # M ← M π′ᵢ(aᵢ) / πᵢ(aᵢ)
            log_ratio = policy.log_prob(data.action) - data.policy.log_prob(data.action)
            everyone = jax.tree.map(lambda all, one: all.at[agent].set(one), everyone, own)
            return (everyone, weight * jnp.exp(log_ratio)), metrics

        everyone = learner.actor.unstack(), learner.actor_optimiser
        nobody = jnp.ones((*batch.is_first.shape, 1))
        ((actors, actor_optimiser), _), metrics = jax.lax.scan(turn, (everyone, nobody), order)
        actor = learner.actor.stack(actors)
        learner = replace(learner, actor=actor, actor_optimiser=actor_optimiser)
        return learner, jax.tree.map(jnp.mean, metrics | critic_metrics)

    def passes(
        self,
        step: Callable,
        start: Any,
        batch: Batch,
        key: PRNGKeyArray,
        *more: Any,
        epochs: int | None = None,
    ) -> tuple[Any, Any]:
        """`step` after step from `start`: in every one of `epochs` passes (by default the actor's)
        through all minibatches, each with a key and with what `more` holds for it, by pass and
        minibatch."""

        def epoch(state, inputs):
            key, *more = inputs
            key_order, key_losses = jax.random.split(key)
            parts = minibatches(batch, self.config.num_minibatches, self.sequence, key_order)
            keys = jax.random.split(key_losses, self.config.num_minibatches)
            return jax.lax.scan(lambda state, x: step(state, *x), state, (parts, keys, *more))

        keys = jax.random.split(key, epochs or self.config.update_epochs)
        return jax.lax.scan(epoch, start, (keys, *more))

    def improve_critic(
        self, learner: Learner, part: Batch, key: PRNGKeyArray, schedule: Schedule
    ) -> tuple[Learner, Float[Array, "time env agent"], Metrics]:
        """One gradient step of the critic; beside it the advantages before the step."""
        gradient, (advantage, metrics) = jax.grad(self.critic_loss, has_aux=True)(
            learner.critic, learner, part, key, schedule
        )
        critic, optimiser = apply_gradients(
            self.critic_optimiser, gradient, learner.critic_optimiser, learner.critic, schedule.rate
        )
        learner = replace(learner, critic=critic, critic_optimiser=optimiser)
        return learner, advantage, metrics | {"critic_grad_norm": optax.tree.norm(gradient)}

    def improve_actor(
        self,
        policies: Policies,
        part: Batch,
        advantage: Float[Array, "time env agent"],
        schedule: Schedule,
    ) -> tuple[Policies, Metrics]:
        """One gradient step of an actor."""
        actor, optimiser = policies
        gradient, metrics = jax.grad(self.actor_loss, has_aux=True)(
            actor, part, advantage, schedule.entropy
        )
        policies = apply_gradients(self.actor_optimiser, gradient, optimiser, actor, schedule.rate)
        return policies, metrics | {"actor_grad_norm": optax.tree.norm(gradient)}

    def critic_loss(
        self,
        critic: AnyCritic,
        learner: Learner,
        part: Batch,
        key: PRNGKeyArray,
        schedule: Schedule,
    ) -> tuple[Float[Array, ""], tuple[Float[Array, "time env agent"], Metrics]]:
        """The error against the targets; beside it the advantages for the actor."""
        config = self.config
        context, _ = critic.context(part.observation, part.critic_hidden_state[0], part.is_first)
        values = estimate(
            config.value, critic, context, part.policy, key, schedule.marginal, part.action
        )
        predicted = prediction(config.value, critic, context, part.action, values)
        target = (
            learner.targets.standardise(part.target) if config.normalize_values else part.target
        )
        error = residual(config.loss, predicted - target)
        if config.value_clip_eps is not None:
            change = jnp.clip(
                predicted - part.prediction, -config.value_clip_eps, config.value_clip_eps
            )
            error = jnp.maximum(error, residual(config.loss, part.prediction + change - target))
        loss = mean(error, part.loss_mask)

        advantage = part.advantage
        if config.refresh_advantages:
            advantage = self.advantages(learner, values, part.policy, part.action, part.target)
        return config.value_coef * loss, (jax.lax.stop_gradient(advantage), {"value_loss": loss})

    def actor_loss(
        self,
        actor: Actor,
        part: Batch,
        advantage: Float[Array, "time env agent"],
        entropy_weight: Float[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        """The policy gradient's surrogate, less the entropy bonus."""
        config, valid = self.config, part.loss_mask
        policy, _ = actor.unroll(part.observation, part.hidden_state[0], part.is_first)
        if config.normalize_advantages:
            centred = advantage - mean(advantage, valid)
            advantage = centred / (jnp.sqrt(variance(advantage, valid)) + 1e-8)
        log_ratio = policy.log_prob(part.action) - part.policy.log_prob(part.action)
        ratio = jnp.exp(log_ratio)
        if config.clip_eps is None:
            surrogate = policy.log_prob(part.action) * advantage
            outside = jnp.zeros_like(ratio)
        else:
            # min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)                      (Schulman et al., 2017, Eq. 7)
            clipped = jnp.clip(ratio, 1 - config.clip_eps, 1 + config.clip_eps)
            surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
            outside = (clipped != ratio).astype(float)
        if part.weight is not None:
            # M min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)                           (Kuba et al., 2022)
            surrogate = part.weight * surrogate
        entropy = mean(policy.entropy(), valid)
        metrics = {
            "entropy": entropy,
            "kl": mean(ratio - 1 - log_ratio, valid),
            "clip_fraction": mean(outside, valid),
        }
        return -mean(surrogate, valid) - entropy_weight * entropy, metrics

    def next_target(self, learner: Learner) -> AnyCritic:
        """The target critic after an update."""
        return update_target(self.config.target, learner.critic, learner.target, learner.updates)

    def unit(self, learner: Learner) -> float | Float[Array, ""]:
        """The rewards' units that one unit of the critic stands for."""
        return learner.targets.deviation if self.config.normalize_values else 1.0

    def raw(self, learner: Learner, values: Float[Array, ...]) -> Float[Array, ...]:
        """The critic's values in the rewards' units."""
        return learner.targets.restore(values) if self.config.normalize_values else values
