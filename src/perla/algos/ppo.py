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
from perla.algos.alive import Counted, outlived
from perla.algos.batch import Batch, minibatches
from perla.algos.descent import create_optimiser, descend, follow, residual
from perla.algos.normalise import Running, mean, variance
from perla.algos.protocol import Trajectory
from perla.algos.values import (
    Estimate,
    Moment,
    advantage_is_critics,
    bootstrap,
    chosen,
    estimate,
    prediction,
)
from perla.distributions import Policy
from perla.envs.protocol import Observation, Spec
from perla.methods.estimators import LADDER, Sampled
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
    critic_memory: Float[Array, "env agent hidden"]
    """The critic's memory before the next step."""
    rewards: Running
    targets: Running
    updates: Int[Array, ""]
    rung: Int[Array, ""]
    """The place on its estimator's ladder: how many joint actions a k of `auto` is now."""


Policies = tuple[Actor, optax.OptState]
"""An actor and its optimiser's state."""


class Pace(NamedTuple):
    """What follows a schedule."""

    rate: Float[Array, ""]
    """By what the learning rates are multiplied."""
    entropy: Float[Array, ""]
    """Weight of the entropy bonus."""
    moment: Moment
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
            actor_optimiser = jax.vmap(self.actor_optimiser.init)(actor.apart())
        else:
            actor_optimiser = self.actor_optimiser.init(actor)
        return Learner(
            actor=actor,
            critic=critic,
            target=critic,
            actor_optimiser=actor_optimiser,
            critic_optimiser=self.critic_optimiser.init(critic),
            critic_memory=critic.body.blank((self.config.num_envs,)),
            rewards=Running.create(),
            targets=Running.create(),
            updates=jnp.int32(0),
            rung=jnp.int32(len(LADDER) // 2),
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
        pace = self.pace(learner, progress)
        key_values, key_epochs, key_order = jax.random.split(key, 3)
        learner, batch, metrics = self.prepare(learner, trajectory, key_values, pace)
        if self.config.order == "sequential":
            order = jax.random.permutation(key_order, self.spec.agents)
            learner, losses = self.in_turn(learner, batch, order, key_epochs, pace)
        else:
            learner, losses = self.at_once(learner, batch, key_epochs, pace)
        learner = replace(learner, updates=learner.updates + 1)
        learner = replace(learner, target=self.next_target(learner))
        return learner, metrics | losses

    def pace(self, learner: Learner, progress: Float[Array, ""]) -> Pace:
        """Where the schedules stand after `progress` (0 to 1) of the run."""
        config, left = self.config, jnp.clip(1.0 - progress, 0.0, 1.0)
        final = config.ent_coef if config.ent_coef_final is None else config.ent_coef_final
        return Pace(
            rate=left if config.anneal_lr else jnp.ones(()),
            entropy=final + (config.ent_coef - final) * left,
            moment=Moment(hope=left, rung=learner.rung),
        )

    def prepare(
        self, learner: Learner, trajectory: Trajectory, key: PRNGKeyArray, pace: Pace
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
            context, memories = critic.context(
                trajectory.observation, learner.critic_memory, trajectory.fresh
            )
            values = estimate(config.value, critic, context, policy, key, pace.moment, action)
            return context, memories, values

        # Targets: what the target critic says along the trajectory and at its episodes' ends.
        target = learner.critic if config.target is None else learner.target
        context, memories, values = look(target, key_target)
        final_values, last_values = self.boundary_values(
            learner, target, trajectory, memories, key_boundary, pace
        )
        along_values = self.following(values, action, trajectory.observation)
        along_values = jnp.concatenate([along_values, last_values[None]])
        targets = self.targets(
            rewards, self.raw(learner, along_values), self.raw(learner, final_values), trajectory
        )

        # The critic itself: its baseline and its prediction before the update.
        if config.target is not None:
            context, memories, values = look(learner.critic, key_value)
        predicted = prediction(config.value, learner.critic, context, action, values)
        batch = Batch(
            observation=trajectory.observation,
            fresh=trajectory.fresh,
            valid=trajectory.valid,
            memory=trajectory.memory,
            critic_memory=jnp.concatenate([learner.critic_memory[None], memories[:-1]]),
            action=action,
            policy=policy,
            prediction=predicted,
            target=targets,
            advantage=self.advantages(learner, values, policy, action, targets),
        )
        valid = batch.counted
        error = targets - self.raw(learner, predicted)
        unexplained = variance(error, valid) / (variance(targets, valid) + 1e-8)
        metrics = {
            "td_error": jnp.sqrt(mean(error**2, valid)),
            "explained_variance": 1.0 - unexplained,
            "value": mean(self.raw(learner, values.value), valid),
        }
        if isinstance(config.value, Embedded):
            learner, more = self.telemetry(
                learner, context, trajectory, valid, values, targets, error, key_look, pace
            )
            metrics |= more
        if config.normalize_values:
            learner = replace(learner, targets=learner.targets.update(targets, valid))
        return replace(learner, critic_memory=memories[-1]), batch, metrics

    def telemetry(
        self,
        learner: Learner,
        context: Float[Array, "time env agent width"],
        trajectory: Trajectory,
        counted: Counted,
        values: Estimate,
        targets: Float[Array, "time env agent"],
        error: Float[Array, "time env agent"],
        key: PRNGKeyArray,
        pace: Pace,
    ) -> tuple[Learner, Metrics]:
        """What the average over the others' actions is like at a few of the steps, and the number
        of joint actions that the next update takes in it."""
        value, unit = self.config.value, self.unit(learner)
        assert isinstance(value, Embedded)
        steps = (context, trajectory.policy, trajectory.action, values, targets, counted)
        every = -(-len(targets) // LOOKS)
        steps = jax.tree.map(lambda x: x[::every], steps)
        context, policy, action, values, targets, valid = steps
        found = telemetry.look(
            value, learner.critic, context, policy, action, values, key, pace.moment
        )
        samples = telemetry.size(value, policy, pace.moment)
        metrics = telemetry.report(found, valid, unit) | {
            "joint_actions": samples,
            "average_flops": telemetry.cost(value, learner.critic, context, policy, pace.moment),
        }
        for name, view in found.views.items():
            advantage = self.advantages(learner, view, policy, action, targets)
            metrics[f"gradient_variance_{name}"] = telemetry.gradient_variance(
                policy, action, advantage, valid
            )
        if isinstance(value.estimator, Sampled) and value.estimator.num_samples == "auto":
            assert found.noise is not None
            noise = unit**2 * mean(found.noise, valid)
            allowed = value.estimator.tolerance**2 * mean(error**2, counted)
            learner = replace(learner, rung=telemetry.rung(noise, samples, allowed))
        return learner, metrics

    def boundary_values(
        self,
        learner: Learner,
        critic: AnyCritic,
        trajectory: Trajectory,
        memories: Float[Array, "time env agent hidden"],
        key: PRNGKeyArray,
        pace: Pace,
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
        fresh = jnp.concatenate([jnp.zeros(most, bool), trajectory.last_fresh])
        actor_memories = jnp.concatenate([trajectory.memory[1:], trajectory.last_memory[None]])
        policy, _ = learner.actor(
            observation, gather(actor_memories, trajectory.last_memory), fresh
        )
        context, _ = critic.context(
            jax.tree.map(lambda x: x[None], observation),
            gather(memories, memories[-1]),
            fresh[None],
        )
        value, action = self.config.value, policy.sample(jax.random.fold_in(key, 1))
        estimated = estimate(value, critic, context[0], policy, key, pace.moment, action)
        values = self.following(estimated, action, observation)
        final = jnp.zeros((time * env, self.spec.agents)).at[ended].set(values[:most], mode="drop")
        return final.reshape(time, env, -1), values[most:]

    def following(
        self, values: Estimate, action: Actions, observation: Observation
    ) -> Float[Array, "*batch agent"]:
        """What returns that lead to these states go on with."""
        found = bootstrap(self.config.value, values, action)
        return outlived(found, observation, common=self.spec.reward == "common")

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
        self, learner: Learner, batch: Batch, key: PRNGKeyArray, pace: Pace
    ) -> tuple[Learner, Metrics]:
        """All passes, in each of which the critic moves, if it has not before, and all agents'
        policies do."""
        critic_metrics: Metrics = {}
        if self.config.critic_epochs is not None:
            learner, batch, critic_metrics = self.critic_first(learner, batch, key, pace)

        def step(learner: Learner, part: Batch, key: PRNGKeyArray):
            advantage, critic_metrics = part.advantage, Metrics()
            if self.config.critic_epochs is None:
                learner, advantage, critic_metrics = self.improve_critic(learner, part, key, pace)
            policies = learner.actor, learner.actor_optimiser
            (actor, optimiser), metrics = self.improve_actor(policies, part, advantage, pace)
            learner = replace(learner, actor=actor, actor_optimiser=optimiser)
            return learner, metrics | critic_metrics

        learner, metrics = self.passes(step, learner, batch, key)
        return learner, jax.tree.map(jnp.mean, metrics | critic_metrics)

    def critic_first(
        self, learner: Learner, batch: Batch, key: PRNGKeyArray, pace: Pace
    ) -> tuple[Learner, Batch, Metrics]:
        """The critic's own passes; beside them the batch with the advantages that are by the critic
        that comes of them, where these are refreshed."""
        key_passes, key_values = jax.random.split(jax.random.fold_in(key, 1))

        def criticise(learner: Learner, part: Batch, key: PRNGKeyArray):
            learner, _, metrics = self.improve_critic(learner, part, key, pace)
            return learner, metrics

        epochs = self.config.critic_epochs
        learner, metrics = self.passes(criticise, learner, batch, key_passes, epochs=epochs)
        _, (advantage, _) = self.critic_loss(learner.critic, learner, batch, key_values, pace)
        return learner, batch._replace(advantage=advantage), jax.tree.map(jnp.mean, metrics)

    def in_turn(
        self,
        learner: Learner,
        batch: Batch,
        order: Int[Array, " agent"],
        key: PRNGKeyArray,
        pace: Pace,
    ) -> tuple[Learner, Metrics]:
        """All of the critic's passes; then, agent by agent in this order, all of a policy's, by
        advantages weighed with what those before it have become (HAPPO; Kuba et al., 2022)."""

        def criticise(learner: Learner, part: Batch, key: PRNGKeyArray):
            learner, advantage, metrics = self.improve_critic(learner, part, key, pace)
            return learner, (advantage, metrics)

        advantages: tuple[Array, ...] = ()
        if self.config.critic_epochs is None:
            learner, (advantage, critic_metrics) = self.passes(criticise, learner, batch, key)
            advantages = (advantage,)
        else:
            learner, batch, critic_metrics = self.critic_first(learner, batch, key, pace)

        def improve(policy: Policies, part: Batch, _: PRNGKeyArray, refreshed: Any = None):
            advantage = part.advantage if refreshed is None else refreshed
            return self.improve_actor(policy, part, advantage, pace)

        def turn(carry: tuple[Policies, Float[Array, "time env 1"]], agent: Int[Array, ""]):
            everyone, weight = carry
            data = batch.of(agent)._replace(weight=weight)
            of_agent = partial(jax.lax.dynamic_index_in_dim, index=agent, axis=-1)
            own = jax.tree.map(lambda x: x[agent], everyone)
            own, metrics = self.passes(improve, own, data, key, *map(of_agent, advantages))
            actor, _ = own
            policy, _ = actor.unroll(data.observation, data.memory[0], data.fresh)
            # M ← M π′ᵢ(aᵢ) / πᵢ(aᵢ)
            log_ratio = policy.log_prob(data.action) - data.policy.log_prob(data.action)
            everyone = jax.tree.map(lambda all, one: all.at[agent].set(one), everyone, own)
            return (everyone, weight * jnp.exp(log_ratio)), metrics

        everyone = learner.actor.apart(), learner.actor_optimiser
        nobody = jnp.ones((*batch.fresh.shape, 1))
        ((actors, actor_optimiser), _), metrics = jax.lax.scan(turn, (everyone, nobody), order)
        actor = learner.actor.joined(actors)
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
        self, learner: Learner, part: Batch, key: PRNGKeyArray, pace: Pace
    ) -> tuple[Learner, Float[Array, "time env agent"], Metrics]:
        """One gradient step of the critic; beside it the advantages before the step."""
        gradient, (advantage, metrics) = jax.grad(self.critic_loss, has_aux=True)(
            learner.critic, learner, part, key, pace
        )
        critic, optimiser = descend(
            self.critic_optimiser, gradient, learner.critic_optimiser, learner.critic, pace.rate
        )
        learner = replace(learner, critic=critic, critic_optimiser=optimiser)
        return learner, advantage, metrics | {"critic_grad_norm": optax.tree.norm(gradient)}

    def improve_actor(
        self,
        policies: Policies,
        part: Batch,
        advantage: Float[Array, "time env agent"],
        pace: Pace,
    ) -> tuple[Policies, Metrics]:
        """One gradient step of an actor."""
        actor, optimiser = policies
        gradient, metrics = jax.grad(self.actor_loss, has_aux=True)(
            actor, part, advantage, pace.entropy
        )
        policies = descend(self.actor_optimiser, gradient, optimiser, actor, pace.rate)
        return policies, metrics | {"actor_grad_norm": optax.tree.norm(gradient)}

    def critic_loss(
        self, critic: AnyCritic, learner: Learner, part: Batch, key: PRNGKeyArray, pace: Pace
    ) -> tuple[Float[Array, ""], tuple[Float[Array, "time env agent"], Metrics]]:
        """The error against the targets; beside it the advantages for the actor."""
        config = self.config
        context, _ = critic.context(part.observation, part.critic_memory[0], part.fresh)
        values = estimate(config.value, critic, context, part.policy, key, pace.moment, part.action)
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
        loss = mean(error, part.counted)

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
        config, valid = self.config, part.counted
        policy, _ = actor.unroll(part.observation, part.memory[0], part.fresh)
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
        return follow(self.config.target, learner.critic, learner.target, learner.updates)

    def unit(self, learner: Learner) -> float | Float[Array, ""]:
        """The rewards' units that one unit of the critic stands for."""
        return learner.targets.deviation if self.config.normalize_values else 1.0

    def raw(self, learner: Learner, values: Float[Array, ...]) -> Float[Array, ...]:
        """The critic's values in the rewards' units."""
        return learner.targets.restore(values) if self.config.normalize_values else values
