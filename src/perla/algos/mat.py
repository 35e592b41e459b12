"""MAT: the agents' actions as a sequence, learnt with PPO (Wen et al., 2022).

Settings and learner. The networks are in `perla.nets.transformer`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from perla.algos.alive import mask_dead_agents
from perla.algos.batch import Batch, minibatches
from perla.algos.descent import apply_gradients, create_optimiser
from perla.algos.losses import policy_loss, value_loss, value_metrics
from perla.algos.normalise import Identity, RunningMeanStd, Scale, mean
from perla.algos.protocol import CriticValues, Trajectory
from perla.algos.targets import compute_returns
from perla.config import Count, Fraction, NonNegative, Positive
from perla.envs.protocol import Observation, Spec
from perla.errors import UserError
from perla.methods import parts
from perla.methods.method import Method
from perla.methods.parts import Adam, Huber, RMSProp, Squared
from perla.methods.ppo import GAE, NStep
from perla.nets.transformer import Decoder, Encoder, Transformer
from perla.parallel import grad
from perla.types import Array, Float, Metrics, PRNGKeyArray


class MAT(Method, tag="mat", frozen=True):
    """Multi-agent transformer: agents share their observations and act one after another, each
    given the actions of those before it (Wen et al., 2022)."""

    num_envs: Count = 32
    """Environments stepped in parallel."""
    rollout_length: Count | None = 32
    """Steps per environment between two updates; none: an episode."""
    update_epochs: Count = 10
    """Passes over the rollout in an update."""
    num_minibatches: Count = 1
    """Minibatches per pass."""

    gamma: Fraction = 0.99
    """Discount factor γ."""
    returns: GAE | NStep = GAE()
    """Returns: the targets of the values."""

    clip_eps: Positive | None = 0.2
    """Clipping ε of the probability ratio; none: the unclipped policy gradient (A2C)."""
    ent_coef: NonNegative = 0.01
    """Weight of the entropy bonus."""
    ent_coef_final: NonNegative | None = 0.0
    """Weight of the entropy bonus at the end of the run, reached linearly; none: constant."""
    init_std: Positive = 1.0
    """Initial standard deviation of continuous actions, per dimension; it is learnt and does not
    depend on the state."""
    normalize_advantages: bool = False
    """Normalize the advantages of each minibatch."""

    loss: Squared | Huber = Huber()
    """Loss of the values."""
    value_clip_eps: Positive | None = None
    """Largest change of a value in an update (value clipping); none: no clipping."""
    value_coef: Positive = 0.25
    """Weight of the values' loss, whose gradient reaches the encoder as the policy's does."""
    normalize_values: bool = True
    """Normalize the values' targets by their running mean and standard deviation."""
    normalize_rewards: bool = True
    """Normalize rewards by their running mean and standard deviation."""

    optimizer: Adam | RMSProp = Adam(eps=1e-5)
    """Optimizer of the network."""
    lr: Positive = 5e-4
    """Learning rate."""
    anneal_lr: bool = False
    """Anneal the learning rate linearly to zero over the run."""
    max_grad_norm: Positive | None = 10.0
    """Largest norm of the gradient; none: no clipping."""

    num_blocks: Count = 1
    """Blocks of the encoder, and of the decoder."""
    num_heads: Count = 1
    """Heads of every attention layer."""
    hidden_size: Count = 64
    """Units of every hidden layer, and features of every token."""
    agent_ids: bool = True
    """Append a one-hot agent id to the observations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"num_heads = {self.num_heads}: must divide hidden_size = {self.hidden_size}"
            )

    def length(self, limit: int | None) -> int:
        """Steps of a rollout; whole episodes are padded to the `limit` of the environment."""
        return parts.length(self.rollout_length, limit)

    def create(self, spec: Spec) -> Algorithm:
        """The learner for an environment; `UserError` where the settings do not fit it."""
        return Algorithm(self, spec)


class Learner(eqx.Module):
    """The state of the learner."""

    actor: Transformer
    optimiser: optax.OptState
    rewards: RunningMeanStd
    targets: RunningMeanStd


class Algorithm:
    """MAT in one environment: `init` makes a learner, `update` improves it by a trajectory.

    Raises `UserError` for settings that do not fit the environment.
    """

    by_env = ()

    def __init__(self, config: MAT, spec: Spec) -> None:
        self.config, self.spec = config, spec
        steps = config.num_envs * config.length(spec.limit)
        if steps % config.num_minibatches:
            raise UserError(
                f"num_minibatches = {config.num_minibatches}: must divide the {steps} steps of a "
                "rollout"
            )
        if not spec.continuous and config.init_std != MAT().init_std:
            raise UserError(
                f"init_std = {config.init_std}: belongs to continuous actions, and those of "
                f"{spec.id} are discrete; leave it out"
            )
        self.optimiser = create_optimiser(config.optimizer, config.lr, config.max_grad_norm)

    def init(self, key: PRNGKeyArray) -> Learner:
        """The initial learner."""
        config, spec = self.config, self.spec
        key_encoder, key_decoder = jax.random.split(key)
        shape = config.hidden_size, config.num_blocks, config.num_heads
        ids = spec.agents if config.agent_ids and spec.agents > 1 else 0
        log_std = math.log(config.init_std) if spec.continuous else None
        actor = Transformer(
            Encoder.create(key_encoder, spec.obs, *shape, ids, picture=spec.image),
            Decoder.create(key_decoder, spec.max_actions, *shape, log_std),
            spec.agents,
        )
        return Learner(
            actor, self.optimiser.init(actor), RunningMeanStd.create(), RunningMeanStd.create()
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
        config, left = self.config, jnp.clip(1.0 - progress, 0.0, 1.0)
        final = config.ent_coef if config.ent_coef_final is None else config.ent_coef_final
        entropy_weight = final + (config.ent_coef - final) * left
        rate = left if config.anneal_lr else jnp.ones(())
        learner, batch, metrics = self.prepare(learner, trajectory)

        def step(learner: Learner, part: Batch) -> tuple[Learner, Metrics]:
            gradient, losses = grad(self.loss)(learner.actor, learner, part, entropy_weight)
            actor, optimiser = apply_gradients(
                self.optimiser, gradient, learner.optimiser, learner.actor, rate
            )
            losses["grad_norm"] = optax.tree.norm(gradient)
            return replace(learner, actor=actor, optimiser=optimiser), losses

        def epoch(learner: Learner, key: PRNGKeyArray):
            return jax.lax.scan(step, learner, minibatches(batch, config.num_minibatches, 1, key))

        learner, losses = jax.lax.scan(epoch, learner, jax.random.split(key, config.update_epochs))
        return learner, metrics | jax.tree.map(jnp.mean, losses)

    def prepare(self, learner: Learner, trajectory: Trajectory) -> tuple[Learner, Batch, Metrics]:
        """The batch, which stays fixed during all passes; the learner with its running statistics
        updated; metrics of the values."""
        config, observation, rewards = self.config, trajectory.observation, trajectory.reward
        if config.normalize_rewards:
            statistics = learner.rewards.update(rewards, trajectory.valid)
            learner, rewards = replace(learner, rewards=statistics), statistics.standardise(rewards)
        scale = self.scale(learner)
        predicted = learner.actor.values(observation)
        values = self.bootstrap(learner, observation), self.bootstrap(learner, trajectory.last)
        targets = compute_returns(
            config.returns,
            config.gamma,
            rewards,
            jnp.concatenate([values[0], values[1][None]]),
            self.bootstrap(learner, trajectory.final),
            trajectory,
        )
        batch = Batch(
            observation=observation,
            is_first=trajectory.is_first,
            valid=trajectory.valid,
            hidden_state=trajectory.hidden_state,
            critic_hidden_state=trajectory.hidden_state,
            action=trajectory.action,
            policy=trajectory.policy,
            prediction=predicted,
            target=targets,
            # Aᵢ = G − Vᵢ
            advantage=targets - scale.restore(predicted),
        )
        metrics = value_metrics(predicted, batch, scale)
        metrics["value"] = mean(scale.restore(predicted), batch.loss_mask)
        if config.normalize_values:
            learner = replace(learner, targets=learner.targets.update(targets, batch.loss_mask))
        return learner, batch, metrics

    def loss(
        self, actor: Transformer, learner: Learner, part: Batch, entropy_weight: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss of policy and values, whose encoder is the same."""
        config = self.config
        encoding = actor.encoder(part.observation.obs)
        policy = actor.policy(encoding, part.observation).given(part.action)
        surrogate, metrics = policy_loss(
            policy,
            part,
            part.advantage,
            entropy_weight,
            clip_eps=config.clip_eps,
            normalize_advantages=config.normalize_advantages,
        )
        values = value_loss(
            actor.encoder.values(encoding),
            part,
            self.scale(learner),
            loss=config.loss,
            clip_eps=config.value_clip_eps,
        )
        return surrogate + config.value_coef * values, metrics | {"value_loss": values}

    def critic_values(
        self, learner: Learner, trajectory: Trajectory, key: PRNGKeyArray
    ) -> CriticValues:
        """The values of a trajectory's states, in units of the rewards."""
        return CriticValues(
            self.scale(learner).restore(learner.actor.values(trajectory.observation))
        )

    def bootstrap(self, learner: Learner, observation: Observation) -> Float[Array, "*batch agent"]:
        """The values from which returns bootstrap at these states, in units of the rewards."""
        values = learner.actor.values(observation)
        common = self.spec.reward == "common"
        return self.scale(learner).restore(mask_dead_agents(values, observation, common=common))

    def scale(self, learner: Learner) -> Scale:
        """The relation of the values' units to those of the rewards."""
        return learner.targets if self.config.normalize_values else Identity()
