"""The actor-critic learner: PPO for many agents, whose variants are settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from perla.algos import diagnostics
from perla.algos.actor_critic import check, create_actor, create_critic
from perla.algos.batch import Batch, minibatches
from perla.algos.descent import apply_gradients, create_optimiser, update_target
from perla.algos.learner import Evaluation, Learner, Schedule
from perla.algos.losses import policy_loss, value_loss, value_metrics
from perla.algos.normalise import Identity, RunningMeanStd, Scale, mean
from perla.algos.protocol import CriticValues, Trajectory
from perla.algos.sequential import Policies, update_in_turn
from perla.algos.targets import bootstrap_values, boundary_values, compute_returns
from perla.algos.values import EmbeddedValue, MarginalSchedule, create_value
from perla.envs.protocol import Spec
from perla.keys import apart
from perla.methods.estimators import CANDIDATES
from perla.methods.ppo import PPO
from perla.nets.actors import Actor
from perla.nets.critics import AnyCritic
from perla.parallel import common, grad
from perla.types import Array, Float, Int, Metrics, PRNGKeyArray


class Algorithm:
    """PPO in one environment: `init` makes a learner, `update` improves it by a trajectory.

    Raises `UserError` for settings that do not fit each other or the environment.
    """

    by_env = ("critic_hidden_state",)

    def __init__(self, config: PPO, spec: Spec) -> None:
        self.config, self.spec = config, spec
        self.sequence = config.sequence(spec.limit)
        check(config, spec)
        self.value = create_value(config.value, spec, layer_norm=config.layer_norm)
        self.actor_optimiser, self.critic_optimiser = (
            create_optimiser(config.optimizer, rate, config.max_grad_norm)
            for rate in (config.lr, config.critic_lr or config.lr)
        )

    def init(self, key: PRNGKeyArray) -> Learner:
        """The initial learner."""
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
        """Estimate targets and advantages, then make several passes over the trajectory.

        `progress` is the share (0 to 1) of the run that is done.
        """
        schedule = self.schedule(learner, progress)
        key_values, key_epochs, key_order = jax.random.split(key, 3)
        learner, batch, metrics = self.prepare(learner, trajectory, key_values, schedule)
        if self.config.order == "sequential":
            order = common(jax.random.permutation(key_order, self.spec.agents))
            learner, losses = self.update_sequentially(learner, batch, order, key_epochs, schedule)
        else:
            learner, losses = self.update_simultaneously(learner, batch, key_epochs, schedule)
        learner = replace(learner, updates=learner.updates + 1)
        learner = replace(learner, target=self.next_target(learner))
        return learner, metrics | losses

    def schedule(self, learner: Learner, progress: Float[Array, ""]) -> Schedule:
        """The values of all schedules after `progress` (0 to 1) of the run."""
        config, left = self.config, jnp.clip(1.0 - progress, 0.0, 1.0)
        final = config.ent_coef if config.ent_coef_final is None else config.ent_coef_final
        return Schedule(
            rate=left if config.anneal_lr else jnp.ones(()),
            entropy=final + (config.ent_coef - final) * left,
            marginal=MarginalSchedule(optimism=left, candidate=learner.candidate),
        )

    # --- Estimates ------------------------------------------------------------------------------

    def prepare(
        self, learner: Learner, trajectory: Trajectory, key: PRNGKeyArray, schedule: Schedule
    ) -> tuple[Learner, Batch, Metrics]:
        """The batch, which stays fixed during all passes; the learner with its running statistics
        updated; metrics of the critic."""
        key_target, key_boundary, key_value, key_diagnostics = jax.random.split(key, 4)
        learner, rewards = self.scale_rewards(learner, trajectory)

        # The target critic bootstraps the returns.
        critic = learner.critic if self.config.target is None else learner.target
        evaluated = self.evaluate(critic, learner, trajectory, key_target, schedule)
        targets = self.targets(
            critic, learner, trajectory, rewards, evaluated, key_boundary, schedule
        )

        # The critic gives the baseline.
        if self.config.target is not None:
            evaluated = self.evaluate(learner.critic, learner, trajectory, key_value, schedule)
        batch = self.batch(learner, trajectory, targets, evaluated)
        learner, metrics = self.diagnose(learner, batch, evaluated, key_diagnostics, schedule)
        if self.config.normalize_values:
            learner = replace(learner, targets=learner.targets.update(targets, batch.loss_mask))
        learner = replace(learner, critic_hidden_state=evaluated.hidden_states[-1])
        return learner, batch, metrics

    def scale_rewards(
        self, learner: Learner, trajectory: Trajectory
    ) -> tuple[Learner, Float[Array, "time env agent"]]:
        """The rewards, standardised if the settings say so, by statistics that include them."""
        if not self.config.normalize_rewards:
            return learner, trajectory.reward
        statistics = learner.rewards.update(trajectory.reward, trajectory.valid)
        return replace(learner, rewards=statistics), statistics.standardise(trajectory.reward)

    def evaluate(
        self,
        critic: AnyCritic,
        learner: Learner,
        trajectory: Trajectory,
        key: PRNGKeyArray,
        schedule: Schedule,
    ) -> Evaluation:
        """Unroll a critic along the trajectory."""
        context, hidden_states = critic.context(
            trajectory.observation, learner.critic_hidden_state, trajectory.is_first
        )
        estimated = self.value.estimate(
            critic, context, trajectory.policy, key, schedule.marginal, trajectory.action
        )
        return Evaluation(context, hidden_states, estimated)

    def targets(
        self,
        critic: AnyCritic,
        learner: Learner,
        trajectory: Trajectory,
        rewards: Float[Array, "time env agent"],
        evaluated: Evaluation,
        key: PRNGKeyArray,
        schedule: Schedule,
    ) -> Float[Array, "time env agent"]:
        """The returns that the critic learns, bootstrapped from `critic`, of which `evaluated` is
        the evaluation."""
        config, scale = self.config, self.scale(learner)
        final_values, last_values = boundary_values(
            self.value,
            self.spec,
            learner.actor,
            critic,
            trajectory,
            evaluated.hidden_states,
            key,
            schedule.marginal,
        )
        values = bootstrap_values(
            self.value, self.spec, evaluated.estimated, trajectory.action, trajectory.observation
        )
        values = jnp.concatenate([values, last_values[None]])
        return compute_returns(
            config.returns,
            config.gamma,
            rewards,
            scale.restore(values),
            scale.restore(final_values),
            trajectory,
        )

    def batch(
        self,
        learner: Learner,
        trajectory: Trajectory,
        targets: Float[Array, "time env agent"],
        evaluated: Evaluation,
    ) -> Batch:
        """The inputs of the losses."""
        estimated, action = evaluated.estimated, trajectory.action
        between = evaluated.hidden_states[self.sequence - 1 : -1 : self.sequence]
        return Batch(
            observation=trajectory.observation,
            is_first=trajectory.is_first,
            valid=trajectory.valid,
            hidden_state=trajectory.hidden_state[:: self.sequence],
            critic_hidden_state=jnp.concatenate([learner.critic_hidden_state[None], between]),
            action=action,
            policy=trajectory.policy,
            prediction=self.value.prediction(learner.critic, evaluated.context, action, estimated),
            target=targets,
            advantage=self.value.head.advantages(estimated, action, targets, self.scale(learner)),
        )

    def critic_values(
        self, learner: Learner, trajectory: Trajectory, key: PRNGKeyArray
    ) -> CriticValues:
        """The critic's values along a trajectory that begins with an episode."""
        envs = trajectory.is_first.shape[1]
        learner = replace(learner, critic_hidden_state=learner.critic.body.initial_state((envs,)))
        schedule = self.schedule(learner, jnp.ones(()))
        evaluated = self.evaluate(learner.critic, learner, trajectory, key, schedule)
        estimated, scale = evaluated.estimated, self.scale(learner)
        value, marginal = self.value, None
        if isinstance(value, EmbeddedValue):
            value, marginal = replace(value, regress="joint"), scale.restore(estimated.value)
        joint = value.prediction(learner.critic, evaluated.context, trajectory.action, estimated)
        return CriticValues(scale.restore(joint), marginal)

    def diagnose(
        self,
        learner: Learner,
        batch: Batch,
        evaluated: Evaluation,
        key: PRNGKeyArray,
        schedule: Schedule,
    ) -> tuple[Learner, Metrics]:
        """Metrics of the critic before the update; the learner with the number of samples of the
        next one."""
        mask, targets, scale = batch.loss_mask, batch.target, self.scale(learner)
        metrics = value_metrics(batch.prediction, batch, scale)
        metrics["value"] = mean(scale.restore(evaluated.estimated.value), mask)
        if self.value.estimator is None:
            return learner, metrics
        squared_error = mean((targets - scale.restore(batch.prediction)) ** 2, mask)
        states = diagnostics.States(
            evaluated.context, batch.policy, batch.action, evaluated.estimated, targets, mask
        )
        candidate, marginal_metrics = diagnostics.diagnose(
            self.value, learner.critic, states, squared_error, scale, key, schedule.marginal
        )
        return replace(learner, candidate=candidate), metrics | marginal_metrics

    def scale(self, learner: Learner) -> Scale:
        """The relation of the critic's units to those of the rewards."""
        return learner.targets if self.config.normalize_values else Identity()

    # --- Updates --------------------------------------------------------------------------------

    def update_simultaneously(
        self, learner: Learner, batch: Batch, key: PRNGKeyArray, schedule: Schedule
    ) -> tuple[Learner, Metrics]:
        """All passes, each of which updates all agents' policies together, and the critic unless
        it has its own passes."""
        critic_metrics: Metrics = {}
        if self.config.critic_epochs is not None:
            learner, batch, critic_metrics = self.update_critic_first(learner, batch, key, schedule)

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

    def update_sequentially(
        self,
        learner: Learner,
        batch: Batch,
        order: Int[Array, " agent"],
        key: PRNGKeyArray,
        schedule: Schedule,
    ) -> tuple[Learner, Metrics]:
        """All of the critic's passes; then all passes of one agent's policy after another's, in
        this order (HAPPO)."""

        def critic_step(learner: Learner, part: Batch, key: PRNGKeyArray):
            learner, advantage, metrics = self.improve_critic(learner, part, key, schedule)
            return learner, (advantage, metrics)

        advantages: tuple[Array, ...] = ()
        if self.config.critic_epochs is None:
            learner, (advantage, critic_metrics) = self.passes(critic_step, learner, batch, key)
            advantages = (advantage,)
        else:
            learner, batch, critic_metrics = self.update_critic_first(learner, batch, key, schedule)

        def actor_step(policy: Policies, part: Batch, _: PRNGKeyArray, refreshed: Any = None):
            advantage = part.advantage if refreshed is None else refreshed
            return self.improve_actor(policy, part, advantage, schedule)

        def improve(policy: Policies, data: Batch, agent: Int[Array, ""]):
            take = partial(jax.lax.dynamic_index_in_dim, index=agent, axis=-1)
            return self.passes(actor_step, policy, data, key, *map(take, advantages))

        policies = learner.actor, learner.actor_optimiser
        (actor, optimiser), metrics = update_in_turn(policies, batch, order, improve)
        learner = replace(learner, actor=actor, actor_optimiser=optimiser)
        return learner, jax.tree.map(jnp.mean, metrics | critic_metrics)

    def update_critic_first(
        self, learner: Learner, batch: Batch, key: PRNGKeyArray, schedule: Schedule
    ) -> tuple[Learner, Batch, Metrics]:
        """The critic's own passes; the batch has the updated critic's advantages if the settings
        refresh them."""
        key_passes, key_values = jax.random.split(apart(key))

        def step(learner: Learner, part: Batch, key: PRNGKeyArray):
            learner, _, metrics = self.improve_critic(learner, part, key, schedule)
            return learner, metrics

        epochs = self.config.critic_epochs
        learner, metrics = self.passes(step, learner, batch, key_passes, epochs=epochs)
        _, (advantage, _) = self.critic_loss(learner.critic, learner, batch, key_values, schedule)
        return learner, batch._replace(advantage=advantage), jax.tree.map(jnp.mean, metrics)

    def passes(
        self,
        step: Callable,
        start: Any,
        batch: Batch,
        key: PRNGKeyArray,
        *more: Any,
        epochs: int | None = None,
    ) -> tuple[Any, Any]:
        """Scan `step(state, minibatch, key, *more)` from `start` over all minibatches of all
        passes.

        There are `epochs` passes (default: the actor's). `more` has leading pass and minibatch
        axes. The outputs get these axes too.
        """

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
        """One gradient step of the critic, and the advantages before it."""
        gradient, (advantage, metrics) = grad(self.critic_loss)(
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
        gradient, metrics = grad(self.actor_loss)(actor, part, advantage, schedule.entropy)
        policies = apply_gradients(self.actor_optimiser, gradient, optimiser, actor, schedule.rate)
        return policies, metrics | {"actor_grad_norm": optax.tree.norm(gradient)}

    def next_target(self, learner: Learner) -> AnyCritic:
        """The target critic after an update."""
        return update_target(self.config.target, learner.critic, learner.target, learner.updates)

    # --- Losses ---------------------------------------------------------------------------------

    def critic_loss(
        self,
        critic: AnyCritic,
        learner: Learner,
        part: Batch,
        key: PRNGKeyArray,
        schedule: Schedule,
    ) -> tuple[Float[Array, ""], tuple[Float[Array, "time env agent"], Metrics]]:
        """The critic's error on the targets, and the advantages for the actor."""
        config, scale = self.config, self.scale(learner)
        context, _ = critic.context(part.observation, part.critic_hidden_state[0], part.is_first)
        estimated = self.value.estimate(
            critic, context, part.policy, key, schedule.marginal, part.action
        )
        predicted = self.value.prediction(critic, context, part.action, estimated)
        loss = value_loss(predicted, part, scale, loss=config.loss, clip_eps=config.value_clip_eps)

        advantage = part.advantage
        if config.refresh_advantages:
            advantage = self.value.head.advantages(estimated, part.action, part.target, scale)
        return config.value_coef * loss, (jax.lax.stop_gradient(advantage), {"value_loss": loss})

    def actor_loss(
        self,
        actor: Actor,
        part: Batch,
        advantage: Float[Array, "time env agent"],
        entropy_weight: Float[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        """The surrogate of the policy gradient, less the entropy bonus."""
        policy, _ = actor.unroll(part.observation, part.hidden_state[0], part.is_first)
        return policy_loss(
            policy,
            part,
            advantage,
            entropy_weight,
            clip_eps=self.config.clip_eps,
            normalize_advantages=self.config.normalize_advantages,
        )
