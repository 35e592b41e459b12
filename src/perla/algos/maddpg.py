"""MADDPG: deterministic policy gradients with a centralised critic per agent (Lowe et al., 2017).

The gradient reaches the actor through continuous actions directly, and through discrete ones by the
Gumbel-softmax.
"""

from __future__ import annotations

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from perla.algos.alive import mask_dead_agents
from perla.algos.descent import apply_gradients, create_optimiser, residual, update_target
from perla.algos.normalise import mean
from perla.algos.offpolicy import (
    ReplayState,
    create_utilities,
    one_step_targets,
    unroll_utilities,
)
from perla.algos.protocol import CriticValues, Trajectory
from perla.algos.replay import Sequences
from perla.distributions import Categorical, Gaussian, encode
from perla.envs.protocol import Spec
from perla.errors import UserError
from perla.methods.maddpg import DDPG, GumbelSoftmax
from perla.methods.parts import check_agents
from perla.nets.actors import DeterministicActor
from perla.nets.body import Body
from perla.nets.critics import JointCritic
from perla.nets.layers import SMALL, expand_dims_like
from perla.types import Actions, Array, Float, Int, Metrics, PRNGKeyArray


class Networks(eqx.Module):
    """The networks that are trained."""

    actor: DeterministicActor
    critic: JointCritic


class Learner(eqx.Module):
    """The state of the learner."""

    networks: Networks
    target: Networks
    actor_optimiser: optax.OptState
    critic_optimiser: optax.OptState
    replay_state: ReplayState
    updates: Int[Array, ""]
    """Gradient steps so far, of either network."""

    @property
    def actor(self) -> DeterministicActor:
        """The policies."""
        return self.networks.actor


def create_critic(config: DDPG, spec: Spec, key: PRNGKeyArray) -> JointCritic:
    """A newly initialised critic for an environment."""
    return JointCritic(
        Body.create(
            key, agents=spec.agents, features=spec.state,
            extra_inputs=spec.agents * spec.max_actions, action_fusion="first", outputs=1,
            core="mlp", hidden_size=config.hidden_size, num_layers=config.critic_num_layers,
            gain=SMALL, init=config.init, norm=config.layer_norm,
            ids=config.agent_ids, parameter_groups=config.nets(spec.agents),
            picture=spec.state_image,
        )
    )  # fmt: skip


def check_actions(config: DDPG, spec: Spec) -> None:
    """Raise `UserError` for a setting without effect on the environment's kind of actions."""
    if not spec.continuous and config.exploration_noise != DDPG().exploration_noise:
        raise UserError(
            f"exploration_noise = {config.exploration_noise}: belongs to continuous actions, and "
            f"those of {spec.id} are discrete, sampled from the policy itself; leave it out"
        )
    temperature = config.relaxation.temperature
    if spec.continuous and temperature != GumbelSoftmax().temperature:
        raise UserError(
            f"temperature = {temperature}: belongs to discrete actions, and those of {spec.id} are "
            "continuous; use exploration_noise"
        )


class Algorithm:
    """MADDPG in one environment: `init` creates a learner, `update` stores a trajectory and trains
    on batches from the replay buffer.

    Raises `UserError` for settings that do not fit the environment.
    """

    def __init__(self, config: DDPG, spec: Spec) -> None:
        check_agents(config.parameter_groups, spec.agents, spec.id)
        check_actions(config, spec)
        self.config, self.spec = config, spec
        self.actor_optimiser, self.critic_optimiser = (
            create_optimiser(config.optimizer, rate, config.max_grad_norm)
            for rate in (config.lr, config.critic_lr or config.lr)
        )

    def init(self, key: PRNGKeyArray) -> Learner:
        """A newly initialised learner."""
        key_actor, key_critic = jax.random.split(key)
        utilities = create_utilities(self.config, self.spec, key_actor)
        actor = DeterministicActor(
            utilities, self.config.exploration_noise if self.spec.continuous else None
        )
        critic = create_critic(self.config, self.spec, key_critic)
        networks = Networks(actor, critic)
        return Learner(
            networks=networks,
            target=networks,
            actor_optimiser=self.actor_optimiser.init(actor),
            critic_optimiser=self.critic_optimiser.init(critic),
            replay_state=ReplayState.create(
                self.config,
                self.spec,
                hidden_state_size=actor.logits.hidden_state_size,
                values=self.spec.agents,
                state=True,
            ),
            updates=jnp.int32(0),
        )

    def update(
        self,
        learner: Learner,
        trajectory: Trajectory,
        key: PRNGKeyArray,
        progress: Float[Array, ""],
    ) -> tuple[Learner, Metrics]:
        """Store the trajectory, then make gradient steps on replayed batches."""
        replay_state = learner.replay_state.add(trajectory, trajectory.reward, self.spec)
        learner = replace(learner, replay_state=replay_state)
        keys_replay, keys_loss = jax.random.split(key, (2, self.config.updates_per_rollout))
        batches = replay_state.sample(self.config, keys_replay)
        learner, metrics = jax.lax.scan(self.gradient_step, learner, (batches, keys_loss))
        return learner, jax.tree.map(jnp.mean, metrics)

    def gradient_step(
        self, learner: Learner, inputs: tuple[Sequences, PRNGKeyArray]
    ) -> tuple[Learner, Metrics]:
        """A gradient step of the critics on a replayed batch, then one of the actors
        (Lowe et al., 2017, Algorithm 1)."""
        batch, key = inputs
        y = self.targets(learner.target, batch)
        critic_gradient, critic_metrics = jax.grad(self.critic_loss, has_aux=True)(
            learner.networks.critic, batch, y
        )
        critic, critic_optimiser = apply_gradients(
            self.critic_optimiser,
            critic_gradient,
            learner.critic_optimiser,
            learner.networks.critic,
        )
        actor_gradient, actor_metrics = jax.grad(self.actor_loss, has_aux=True)(
            learner.networks.actor, critic, batch, key
        )
        actor, actor_optimiser = apply_gradients(
            self.actor_optimiser, actor_gradient, learner.actor_optimiser, learner.networks.actor
        )
        networks, updates = Networks(actor, critic), learner.updates + 1
        learner = replace(
            learner,
            networks=networks,
            target=update_target(self.config.target, networks, learner.target, updates),
            actor_optimiser=actor_optimiser,
            critic_optimiser=critic_optimiser,
            updates=updates,
        )
        norms = {
            "actor_grad_norm": optax.tree.norm(actor_gradient),
            "critic_grad_norm": optax.tree.norm(critic_gradient),
        }
        return learner, critic_metrics | actor_metrics | norms

    def targets(self, target: Networks, batch: Sequences) -> Float[Array, "time sequence agent"]:
        """The target y of every step and agent, from the agent's own reward."""
        # yᵢ = rᵢ + γ (1 − d) Qᵢ⁻(s′, ā′),   ā′ⱼ = argmaxₐ πⱼ⁻(a|τ′ⱼ), or tanh(·)
        policy, _ = self.policies(target.actor, batch)
        best = self.encode(policy.mode())
        values = target.critic(batch.observation.state, best[..., None, :, :])
        values = mask_dead_agents(values, batch.observation, common=self.spec.reward == "common")
        return one_step_targets(batch, values, self.config.gamma)

    def critic_loss(
        self, critic: JointCritic, batch: Sequences, y: Float[Array, "time sequence agent"]
    ) -> tuple[Float[Array, ""], Metrics]:
        """The mean loss of the critics' errors at the joint actions taken."""
        predicted = critic(batch.now.state, self.encode(batch.action)[..., None, :, :])
        error = predicted - y
        loss = mean(residual(self.config.loss, error), batch.loss_mask)
        return loss, {
            "td_error": jnp.sqrt(mean(error**2, batch.loss_mask)),
            "value": mean(predicted, batch.loss_mask),
            "value_loss": loss,
        }

    def actor_loss(
        self, actor: DeterministicActor, critic: JointCritic, batch: Sequences, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The negated value of each agent's own action beside the other agents' replayed actions,
        plus the penalty on its logits."""
        policy, logits = batch.at_steps(self.policies(actor, batch))
        # Lᵢ = −Qᵢ(s, a₁, …, ãᵢ, …, a_N) + c·mean logit²,   ãᵢ ~ πᵢ, or tanh(·),   a replayed
        if isinstance(policy, Categorical):
            own_action = policy.relaxed(key, self.config.relaxation.temperature)
            metrics = {"entropy": mean(policy.entropy(), batch.loss_mask)}
        else:
            own_action, metrics = policy.mode(), {}
        replayed = self.encode(batch.action)[..., None, :, :]
        own = expand_dims_like(jnp.eye(self.spec.agents, dtype=bool)[..., None], replayed)
        value = critic(batch.now.state, jnp.where(own, own_action[..., None, :, :], replayed))
        masked = jnp.where(batch.now.avail, logits, 0.0)
        loss = self.config.logit_penalty * (masked**2).mean(-1) - value
        return mean(loss, batch.loss_mask), metrics

    def critic_values(
        self, learner: Learner, trajectory: Trajectory, key: PRNGKeyArray
    ) -> CriticValues:
        """The values of a trajectory's joint actions."""
        action = self.encode(trajectory.action)[..., None, :, :]
        return CriticValues(learner.networks.critic(trajectory.observation.state, action))

    def policies(
        self, actor: DeterministicActor, batch: Sequences
    ) -> tuple[Categorical | Gaussian, Float[Array, "timestep sequence agent action"]]:
        """The policies at all timesteps, and their logits."""
        logits = unroll_utilities(actor.logits, batch, batch.hidden_state[0]).values
        return actor.policy(logits, batch.observation), logits

    def encode(self, action: Actions) -> Float[Array, "*batch agent dimension"]:
        """The critics' encoding of actions: one-hot, or, for continuous actions, clipped as by the
        environment."""
        if self.spec.continuous:
            action = jnp.clip(action, -1.0, 1.0)
        return encode(action, self.spec.max_actions)
