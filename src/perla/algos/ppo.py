"""The actor-critic learner: one PPO whose variants are arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from perla import returns
from perla.algos import telemetry
from perla.algos.descent import create_optimiser, descend, follow, residual
from perla.algos.normalise import Running, mean, variance
from perla.algos.protocol import Trajectory
from perla.algos.values import (
    Estimate,
    Moment,
    advantage_is_critics,
    chosen,
    estimate,
    outputs,
    prediction,
)
from perla.config import tag
from perla.distributions import Categorical
from perla.envs.protocol import Observation, Spec
from perla.errors import UserError
from perla.methods.aggregators import Mean
from perla.methods.estimators import LADDER, Analytic, Sampled, resolve
from perla.methods.ppo import PPO, NStep
from perla.methods.values import Centralised, Embedded, Multilinear, Network
from perla.nets import critics
from perla.nets.actors import Actor
from perla.nets.body import Body
from perla.nets.critics import AnyCritic, Critic
from perla.types import Array, Bool, Float, Int, Metrics, PRNGKeyArray

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


class Batch(NamedTuple):
    """What the losses read: sequences `[time, env, ...]` of steps."""

    observation: Observation
    fresh: Bool[Array, "time env"]
    valid: Bool[Array, "time env"]
    memory: Float[Array, "time env agent hidden"]
    critic_memory: Float[Array, "time env agent hidden"]
    action: Int[Array, "time env agent"]
    policy: Categorical
    prediction: Float[Array, "time env agent"]
    """The critic's, before the update, in its own units."""
    target: Float[Array, "time env agent"]
    """The returns, in rewards' units."""
    advantage: Float[Array, "time env agent"]


class Pace(NamedTuple):
    """What follows a schedule."""

    rate: Float[Array, ""]
    """By what the learning rates are multiplied."""
    entropy: Float[Array, ""]
    """Weight of the entropy bonus."""
    moment: Moment
    """What of an average over the others' actions changes."""


def create_actor(config: PPO, spec: Spec, key: PRNGKeyArray) -> Actor:
    """A fresh actor for a world."""
    return Actor(
        Body.create(
            key, agents=spec.agents, features=spec.obs, outputs=spec.max_actions,
            core=config.actor, hidden=config.hidden, layers=config.layers,
            gain=0.01, init=config.init, norm=config.layer_norm,
            ids=config.agent_ids, separate=config.sharing == "separate",
        )
    )  # fmt: skip


def create_critic(config: PPO, spec: Spec, key: PRNGKeyArray) -> AnyCritic:
    """A fresh critic of the kind that `config.value` asks for."""
    value = config.value
    sees: Literal["local", "global"] = "global" if isinstance(value, Centralised) else "local"
    joins: Literal["first", "last"] = "last"
    actions = rank = 0
    if isinstance(value, Embedded):
        sees = value.base
        match value.interaction:
            case Network(joins=joins):
                actions = spec.max_actions
            case Multilinear(rank=rank):
                pass
    key, key_effects = jax.random.split(key) if rank else (key, key)
    body = Body.create(
        key, agents=spec.agents, features=spec.obs if sees == "local" else spec.state,
        others=spec.agents * actions, joins=joins,
        outputs=outputs(value, spec.max_actions) * (1 + rank),
        core=config.critic, hidden=config.hidden, layers=config.critic_layers,
        gain=1.0, init=config.init, norm=config.layer_norm,
        ids=config.agent_ids, separate=config.sharing == "separate",
    )  # fmt: skip
    critic = Critic(body, sees, actions)
    if rank == 0:
        return critic
    return critics.Multilinear.create(key_effects, critic, spec.max_actions, rank)


def check(value: Embedded, spec: Spec) -> None:
    """Raise `UserError` for an estimator that cannot be or says what has no effect, and an
    aggregator that learning would undo or that needs joint actions where none are drawn."""
    closed_form = isinstance(value.interaction, Multilinear)
    estimator = resolve(value.estimator, spec.agents, spec.max_actions, closed_form=closed_form)
    if isinstance(estimator, Sampled) and estimator.gradient_k and value.fit == "joint":
        raise UserError(
            f"gradient_k = {estimator.gradient_k} with fit 'joint': no gradient flows through the "
            "average; use fit 'marginal'"
        )
    if isinstance(value.aggregator, Mean):
        return
    name = f"aggregator {tag(value.aggregator)!r}"
    if isinstance(estimator, Analytic):
        raise UserError(
            f"{name}: a closed form has only the mean; use estimator 'sampled' or 'exact'"
        )
    if value.fit != "joint":
        raise UserError(
            f"{name} with fit 'marginal': regressed on returns, the aggregate itself would become "
            "their average; use fit 'joint'"
        )


class Algorithm:
    """PPO on one world: `init` makes a learner, `update` improves it by a trajectory.

    Raises `UserError` for settings that do not fit each other or the world.
    """

    def __init__(self, config: PPO, spec: Spec) -> None:
        self.config, self.spec = config, spec
        self.sequence = config.sequence(spec.limit)
        if isinstance(config.value, Embedded):
            check(config.value, spec)
        self.actor_optimiser, self.critic_optimiser = (
            create_optimiser(config.optimiser, rate, config.max_grad_norm)
            for rate in (config.lr, config.critic_lr or config.lr)
        )

    def init(self, key: PRNGKeyArray) -> Learner:
        """A learner that has seen nothing."""
        key_actor, key_critic = jax.random.split(key)
        actor = create_actor(self.config, self.spec, key_actor)
        critic = create_critic(self.config, self.spec, key_critic)
        return Learner(
            actor=actor,
            critic=critic,
            target=critic,
            actor_optimiser=self.actor_optimiser.init(actor),
            critic_optimiser=self.critic_optimiser.init(critic),
            critic_memory=critic.body.blank((self.config.copies,)),
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
        key_values, key_epochs = jax.random.split(key)
        learner, batch, metrics = self.prepare(learner, trajectory, key_values, pace)

        def epoch(learner: Learner, key: PRNGKeyArray):
            key_order, key_losses = jax.random.split(key)
            parts = minibatches(batch, self.config.minibatches, self.sequence, key_order)
            keys = jax.random.split(key_losses, self.config.minibatches)
            return jax.lax.scan(
                lambda learner, part: self.improve(learner, *part, pace), learner, (parts, keys)
            )

        keys = jax.random.split(key_epochs, self.config.epochs)
        learner, losses = jax.lax.scan(epoch, learner, keys)
        learner = replace(learner, updates=learner.updates + 1)
        learner = replace(learner, target=self.next_target(learner))
        return learner, metrics | jax.tree.map(jnp.mean, losses)

    def pace(self, learner: Learner, progress: Float[Array, ""]) -> Pace:
        """Where the schedules stand after `progress` (0 to 1) of the run."""
        config, left = self.config, jnp.clip(1.0 - progress, 0.0, 1.0)
        final = config.entropy if config.entropy_final is None else config.entropy_final
        return Pace(
            rate=left if config.lr_decay else jnp.ones(()),
            entropy=final + (config.entropy - final) * left,
            moment=Moment(hope=left, rung=learner.rung),
        )

    def prepare(
        self, learner: Learner, trajectory: Trajectory, key: PRNGKeyArray, pace: Pace
    ) -> tuple[Learner, Batch, Metrics]:
        """Everything that stays fixed while the passes are made."""
        config = self.config
        key_target, key_boundary, key_value, key_look = jax.random.split(key, 4)
        rewards = trajectory.reward
        if config.normalise_rewards:
            learner = replace(learner, rewards=learner.rewards.update(rewards, trajectory.valid))
            rewards = learner.rewards.standardise(rewards)

        def look(critic: AnyCritic, key: PRNGKeyArray):
            context, memories = critic.context(
                trajectory.observation, learner.critic_memory, trajectory.fresh
            )
            return (
                context,
                memories,
                estimate(config.value, critic, context, trajectory.policy, key, pace.moment),
            )

        # Targets: what the target critic says along the trajectory and at its episodes' ends.
        bootstrap = learner.critic if config.target is None else learner.target
        context, memories, values = look(bootstrap, key_target)
        final_values, last_values = self.boundary_values(
            learner, bootstrap, trajectory, memories, key_boundary, pace
        )
        along_values = jnp.concatenate([values.value, last_values[None]])
        targets = self.targets(
            rewards, self.raw(learner, along_values), self.raw(learner, final_values), trajectory
        )

        # The critic itself: its baseline and its prediction before the update.
        if config.target is not None:
            context, memories, values = look(learner.critic, key_value)
        predicted = prediction(config.value, learner.critic, context, trajectory.action, values)
        batch = Batch(
            observation=trajectory.observation,
            fresh=trajectory.fresh,
            valid=trajectory.valid,
            memory=trajectory.memory,
            critic_memory=jnp.concatenate([learner.critic_memory[None], memories[:-1]]),
            action=trajectory.action,
            policy=trajectory.policy,
            prediction=predicted,
            target=targets,
            advantage=self.advantages(
                learner, values, trajectory.policy, trajectory.action, targets
            ),
        )
        valid = trajectory.valid
        error = targets - self.raw(learner, predicted)
        unexplained = variance(error, valid) / (variance(targets, valid) + 1e-8)
        metrics = {
            "td_error": jnp.sqrt(mean(error**2, valid)),
            "explained_variance": 1.0 - unexplained,
            "value": mean(self.raw(learner, values.value), valid),
        }
        if isinstance(config.value, Embedded):
            learner, more = self.telemetry(
                learner, context, trajectory, values, targets, error, key_look, pace
            )
            metrics |= more
        if config.normalise_values:
            learner = replace(learner, targets=learner.targets.update(targets, trajectory.valid))
        return replace(learner, critic_memory=memories[-1]), batch, metrics

    def telemetry(
        self,
        learner: Learner,
        context: Float[Array, "time env agent width"],
        trajectory: Trajectory,
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
        steps = (context, trajectory.policy, trajectory.action, values, targets, trajectory.valid)
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
        if isinstance(value.estimator, Sampled) and value.estimator.k == "auto":
            assert found.noise is not None
            noise = unit**2 * mean(found.noise, valid)
            allowed = value.estimator.tolerance**2 * mean(error**2, trajectory.valid)
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
        are gathered and evaluated. Entries of steps that were not truncated are zero.
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
            Observation(*(x[None] for x in observation)),
            gather(memories, memories[-1]),
            fresh[None],
        )
        values = estimate(self.config.value, critic, context[0], policy, key, pace.moment).value
        final = jnp.zeros((time * env, self.spec.agents)).at[ended].set(values[:most], mode="drop")
        return final.reshape(time, env, -1), values[most:]

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
                return returns.n_step(rewards, following, ended, gamma=gamma, n=kind.n)
            return returns.lambda_returns(rewards, following, ended, gamma=gamma, lam=kind.lam)

        each_agent = jax.vmap(one, in_axes=(1, 1, 1, None, None), out_axes=1)
        each_copy = jax.vmap(each_agent, in_axes=1, out_axes=1)
        return each_copy(rewards, values, final_values, trajectory.terminated, trajectory.truncated)

    def advantages(
        self,
        learner: Learner,
        values: Estimate,
        policy: Categorical,
        action: Int[Array, "*batch agent"],
        targets: Float[Array, "*batch agent"],
    ) -> Float[Array, "*batch agent"]:
        """How much better the actions were than the policy, in rewards' units."""
        if advantage_is_critics(self.config.value):
            # Aᵢ = Q̂ᵢ(s, aᵢ) − Σₐ πᵢ(a) Q̂ᵢ(s, a)
            gain = chosen(values.action_values, action) - values.value
            return gain * self.unit(learner)
        # Aᵢ = G − V̂ᵢ(s): target less critic, where the paper's Algorithm 1 has the signs reversed
        return targets - self.raw(learner, values.value)

    def improve(
        self, learner: Learner, part: Batch, key: PRNGKeyArray, pace: Pace
    ) -> tuple[Learner, Metrics]:
        """One gradient step of the critic and one of the actor."""
        critic_gradient, (advantage, critic_metrics) = jax.grad(self.critic_loss, has_aux=True)(
            learner.critic, learner, part, key, pace
        )
        actor_gradient, actor_metrics = jax.grad(self.actor_loss, has_aux=True)(
            learner.actor, part, advantage, pace.entropy
        )
        critic, critic_optimiser = descend(
            self.critic_optimiser,
            critic_gradient,
            learner.critic_optimiser,
            learner.critic,
            pace.rate,
        )
        actor, actor_optimiser = descend(
            self.actor_optimiser, actor_gradient, learner.actor_optimiser, learner.actor, pace.rate
        )
        learner = replace(
            learner,
            actor=actor,
            critic=critic,
            actor_optimiser=actor_optimiser,
            critic_optimiser=critic_optimiser,
        )
        norms = {
            "actor_grad_norm": optax.tree.norm(actor_gradient),
            "critic_grad_norm": optax.tree.norm(critic_gradient),
        }
        return learner, actor_metrics | critic_metrics | norms

    def critic_loss(
        self, critic: AnyCritic, learner: Learner, part: Batch, key: PRNGKeyArray, pace: Pace
    ) -> tuple[Float[Array, ""], tuple[Float[Array, "time env agent"], Metrics]]:
        """The error against the targets; beside it the advantages for the actor."""
        config = self.config
        context, _ = critic.context(part.observation, part.critic_memory[0], part.fresh)
        values = estimate(config.value, critic, context, part.policy, key, pace.moment)
        predicted = prediction(config.value, critic, context, part.action, values)
        target = (
            learner.targets.standardise(part.target) if config.normalise_values else part.target
        )
        error = residual(config.loss, predicted - target)
        if config.value_clip is not None:
            change = jnp.clip(predicted - part.prediction, -config.value_clip, config.value_clip)
            error = jnp.maximum(error, residual(config.loss, part.prediction + change - target))
        loss = mean(error, part.valid)

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
        config = self.config
        policy, _ = actor.unroll(part.observation, part.memory[0], part.fresh)
        if config.normalise_advantages:
            centred = advantage - mean(advantage, part.valid)
            advantage = centred / (jnp.sqrt(variance(advantage, part.valid)) + 1e-8)
        log_ratio = policy.log_prob(part.action) - part.policy.log_prob(part.action)
        ratio = jnp.exp(log_ratio)
        if config.clip is None:
            surrogate = policy.log_prob(part.action) * advantage
            outside = jnp.zeros_like(ratio)
        else:
            # min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)                      (Schulman et al., 2017, Eq. 7)
            clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
            surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
            outside = (clipped != ratio).astype(float)
        entropy = mean(policy.entropy(), part.valid)
        metrics = {
            "entropy": entropy,
            "kl": mean(ratio - 1 - log_ratio, part.valid),
            "clip_fraction": mean(outside, part.valid),
        }
        return -mean(surrogate, part.valid) - entropy_weight * entropy, metrics

    def next_target(self, learner: Learner) -> AnyCritic:
        """The target critic after an update."""
        return follow(self.config.target, learner.critic, learner.target, learner.updates)

    def unit(self, learner: Learner) -> float | Float[Array, ""]:
        """The rewards' units that one unit of the critic stands for."""
        return learner.targets.deviation if self.config.normalise_values else 1.0

    def raw(self, learner: Learner, values: Float[Array, ...]) -> Float[Array, ...]:
        """The critic's values in the rewards' units."""
        return learner.targets.restore(values) if self.config.normalise_values else values


def minibatches(batch: Batch, parts: int, length: int, key: PRNGKeyArray) -> Batch:
    """`batch` cut into sequences of `length` steps, shuffled and dealt out: `[minibatch, time,
    env, ...]`.

    The agents of a step stay together. A single minibatch needs no order and is not touched.
    """
    if parts == 1:
        return jax.tree.map(lambda x: x[None], batch)
    order = jax.random.permutation(key, batch.fresh.size // length)

    def deal(x):
        time, env, *rest = x.shape
        x = x.reshape(time // length, length, env, *rest).swapaxes(0, 1)
        x = x.reshape(length, order.size, *rest)[:, order]
        return x.reshape(length, parts, order.size // parts, *rest).swapaxes(0, 1)

    return jax.tree.map(deal, batch)
