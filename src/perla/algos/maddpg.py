"""The deterministic-policy-gradient learner: each agent's actor climbs its own critic of the joint
action (Lowe et al., 2017), through continuous actions as they are, through discrete ones by the
Gumbel-softmax."""

from __future__ import annotations

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from perla.algos.alive import mask_dead_agents
from perla.algos.descent import apply_gradients, create_optimiser, residual, update_target
from perla.algos.normalise import mean
from perla.algos.offpolicy import ReplayState, bootstrapped, create_utilities, look
from perla.algos.protocol import Trajectory
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
    """What is learnt."""

    actor: DeterministicActor
    critic: JointCritic


class Learner(eqx.Module):
    """All that learning changes."""

    networks: Networks
    target: Networks
    actor_optimiser: optax.OptState
    critic_optimiser: optax.OptState
    replay_state: ReplayState
    updates: Int[Array, ""]
    """Gradient steps made, of either network."""

    @property
    def actor(self) -> DeterministicActor:
        """The policies."""
        return self.networks.actor


def create_critic(config: DDPG, spec: Spec, key: PRNGKeyArray) -> JointCritic:
    """A fresh critic for a world."""
    return JointCritic(
        Body.create(
            key, agents=spec.agents, features=spec.state,
            others=spec.agents * spec.max_actions, joins="first", outputs=1,
            core="mlp", hidden=config.hidden_size, layers=config.critic_num_layers,
            gain=SMALL, init=config.init, norm=config.layer_norm,
            ids=config.agent_ids, groups=config.nets(spec.agents),
        )
    )  # fmt: skip


def check_actions(config: DDPG, spec: Spec) -> None:
    """Raise `UserError` for a setting that the world's kind of actions ignores."""
    if not spec.continuous and config.exploration_noise != DDPG().exploration_noise:
        raise UserError(
            f"exploration_noise = {config.exploration_noise}: belongs to continuous actions, and "
            f"those of {spec.id} are discrete, drawn from the policy itself; leave it out"
        )
    temperature = config.relaxation.temperature
    if spec.continuous and temperature != GumbelSoftmax().temperature:
        raise UserError(
            f"temperature = {temperature}: belongs to discrete actions, and those of {spec.id} are "
            "continuous; use noise"
        )


class Algorithm:
    """MADDPG on one world: `init` makes a learner, `update` remembers a trajectory and learns from
    batches of all that is remembered.

    Raises `UserError` for settings that do not fit the world.
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
        """A learner that has seen nothing."""
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
                hidden_state=actor.logits.hidden_state,
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
        """Remember the trajectory, then learn from what is replayed."""
        replay_state = learner.replay_state.add(trajectory, trajectory.reward, self.spec)
        learner = replace(learner, replay_state=replay_state)
        keys_replay, keys_loss = jax.random.split(key, (2, self.config.updates_per_rollout))
        batches = replay_state.sample(self.config, keys_replay)
        learner, metrics = jax.lax.scan(self.improve, learner, (batches, keys_loss))
        return learner, jax.tree.map(jnp.mean, metrics)

    def improve(
        self, learner: Learner, inputs: tuple[Sequences, PRNGKeyArray]
    ) -> tuple[Learner, Metrics]:
        """On sequences drawn from the replay, a gradient step of the critics, then one of the
        actors, who climb them (Lowe et al., 2017, Algorithm 1)."""
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
        """y of every step, of its own reward for every agent."""
        # yᵢ = rᵢ + γ (1 − d) Qᵢ⁻(s′, ā′),   ā′ⱼ = argmaxₐ πⱼ⁻(a|τ′ⱼ), or tanh(·)
        policy, _ = self.policies(target.actor, batch)
        best = self.encode(policy.mode())
        values = target.critic(batch.observation.state, best[..., None, :, :])
        values = mask_dead_agents(values, batch.observation, common=self.spec.reward == "common")
        return bootstrapped(batch, values, self.config.gamma)

    def critic_loss(
        self, critic: JointCritic, batch: Sequences, y: Float[Array, "time sequence agent"]
    ) -> tuple[Float[Array, ""], Metrics]:
        """The errors of the values of what was done."""
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
        """The values that each agent's policy earns it beside what the others did, negated, and
        the size of its logits."""
        time = len(batch.is_first)
        policy, logits = jax.tree.map(lambda x: x[:time], self.policies(actor, batch))
        # Lᵢ = −Qᵢ(s, a₁, …, ãᵢ, …, a_N) + c·mean logit²,   ãᵢ ~ πᵢ, or tanh(·),   a from the replay
        if isinstance(policy, Categorical):
            own_action = policy.relaxed(key, self.config.relaxation.temperature)
            metrics = {"entropy": mean(policy.entropy(), batch.loss_mask)}
        else:
            own_action, metrics = policy.mode(), {}
        done = self.encode(batch.action)[..., None, :, :]
        own = expand_dims_like(jnp.eye(self.spec.agents, dtype=bool)[..., None], done)
        value = critic(batch.now.state, jnp.where(own, own_action[..., None, :, :], done))
        size = jnp.where(batch.now.avail, logits, 0.0)
        loss = self.config.logit_penalty * (size**2).mean(-1) - value
        return mean(loss, batch.loss_mask), metrics

    def policies(
        self, actor: DeterministicActor, batch: Sequences
    ) -> tuple[Categorical | Gaussian, Float[Array, "place sequence agent action"]]:
        """The policies at all places, and their logits."""
        logits = look(actor.logits, batch, batch.hidden_state[0]).values
        return actor.policy(logits, batch.observation), logits

    def encode(self, action: Actions) -> Float[Array, "*batch agent dimension"]:
        """Actions as critics read them: one-hot, or, continuous, as far as the world does them."""
        if self.spec.continuous:
            action = jnp.clip(action, -1.0, 1.0)
        return encode(action, self.spec.max_actions)
