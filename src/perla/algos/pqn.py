"""PQN: Q-learning from parallel environments, without a replay buffer and without a target network
(Gallici et al., 2025), of each agent's own value (IQL) or of their sum (VDN).

The settings and the learner are in this one file.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from perla.algos.alive import LossMask, loss_mask, mask_dead_agents
from perla.algos.batch import minibatches
from perla.algos.descent import apply_gradients, create_optimiser
from perla.algos.normalise import RunningMeanStd, mean
from perla.algos.offpolicy import create_utilities, linear_decay, successor_values
from perla.algos.protocol import Trajectory
from perla.algos.replay import Sequences, sequences
from perla.algos.td import Factored, mask_dead_utilities
from perla.config import Count, Fraction, Groups, Positive
from perla.envs.protocol import Observation, Spec
from perla.errors import UserError
from perla.methods import parts
from perla.methods.method import Method
from perla.methods.parts import Adam, RAdam, RMSProp
from perla.methods.td import IQLMixer, VDNMixer
from perla.nets import mixers
from perla.nets.actors import GreedyActor, mask_values
from perla.parallel import grad, total
from perla.returns import lambda_returns
from perla.types import Array, Bool, Float, Int, Metrics, PRNGKeyArray


class PQN(Method, tag="pqn", frozen=True):
    """Parallelised Q-learning: λ-returns of layer-normalized networks are their own targets, with
    neither a replay buffer nor a target network (Gallici et al., 2025)."""

    decided = ("mixer",)

    mixer: IQLMixer | VDNMixer = VDNMixer()
    """The mixer: from the agents' utilities to the joint value."""

    num_envs: Count = 32
    """Environments stepped in parallel."""
    rollout_length: Count | None = 16
    """Steps per environment between two updates; none: an episode."""
    update_epochs: Count = 4
    """Passes over the rollout in an update."""
    num_minibatches: Count = 8
    """Minibatches per pass: of single steps, or, with a GRU, of whole rollouts of environments."""

    gamma: Fraction = 0.99
    """Discount factor γ."""
    q_lambda: Fraction = 0.3
    """λ of the targets: 0 is one-step Q-learning, 1 the Monte Carlo return."""
    normalize_rewards: bool = True
    """Normalize rewards by their running mean and standard deviation."""

    epsilon_start: Fraction = 1.0
    """Initial share ε of random actions."""
    epsilon_end: Fraction = 0.05
    """Final share ε of random actions, reached linearly."""
    epsilon_decay_steps: Count = 100_000
    """Environment steps until ε is final."""

    optimizer: Adam | RAdam | RMSProp = RAdam()
    """Optimizer of the networks."""
    lr: Positive = 1e-3
    """Learning rate."""
    anneal_lr: bool = True
    """Anneal the learning rate linearly to zero over the run."""
    max_grad_norm: Positive | None = 10.0
    """Largest norm of the gradient; none: no clipping."""

    actor_network: Literal["mlp", "gru"] = "mlp"
    """Network of the agents: dense layers only, or dense layers and a GRU."""
    hidden_size: Count = 128
    """Units of every hidden layer."""
    num_layers: Count = 2
    """Dense hidden layers of the agents' network."""
    init: Literal["orthogonal", "torch"] = "orthogonal"
    """Initial weights: orthogonal, or PyTorch's default."""
    layer_norm: bool = True
    """Layer normalization of every hidden layer, but not of the inputs; it keeps values from
    diverging without a target network."""
    parameter_sharing: Literal["shared", "separate"] = "shared"
    """`shared`: one set of parameters for all agents. `separate`: one per agent."""
    parameter_groups: Groups = None
    """Group of each agent, such as 0,0,1: agents of a group share parameters; none: all do."""
    agent_ids: bool = True
    """Append a one-hot agent id to the inputs of shared networks."""
    last_action: bool = True
    """Append the agent's last action to its observation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parts.check_groups(self.parameter_sharing, self.parameter_groups)

    def create(self, spec: Spec) -> Algorithm:
        """The learner for an environment; `UserError` where the settings do not fit it."""
        return Algorithm(self, spec)

    def nets(self, agents: int) -> Groups:
        """The parameter group of each of `agents`."""
        if self.parameter_sharing == "separate":
            return parts.one_each(agents)
        return self.parameter_groups

    def length(self, limit: int | None) -> int:
        """Steps of a rollout; whole episodes are padded to the `limit` of the environment."""
        return parts.length(self.rollout_length, limit)

    def sequence(self, limit: int | None) -> int:
        """Steps of the sequences in a minibatch: single steps, or with a GRU the whole rollout.

        Raises `UserError` if the minibatches do not divide the sequences.
        """
        length = self.length(limit)
        sequence = length if self.actor_network == "gru" else 1
        sequences = self.num_envs * length // sequence
        if sequences % self.num_minibatches:
            raise UserError(
                f"num_minibatches = {self.num_minibatches}: must divide the {sequences} sequences "
                f"of {self.num_envs} environments in {length} steps"
            )
        return sequence


class Batch(NamedTuple):
    """The inputs of the loss: sequences `[time, env, ...]` of steps."""

    observation: Observation
    is_first: Bool[Array, "time env"]
    hidden_state: Float[Array, "time env agent hidden"]
    action: Int[Array, "time env agent"]
    target: Float[Array, "time env value"]
    mask: LossMask
    """The steps that enter the loss."""


class Learner(eqx.Module):
    """The state of the learner."""

    values: Factored
    optimiser: optax.OptState
    rewards: RunningMeanStd
    epsilon: Float[Array, ""]
    steps: Int[Array, ""]
    """Environment steps so far."""

    @property
    def actor(self) -> GreedyActor:
        """The policies."""
        return GreedyActor(self.values.utilities, self.epsilon)


class Algorithm:
    """PQN in one environment: `init` creates a learner, `update` improves it by a trajectory.

    Raises `UserError` for settings that do not fit each other or the environment.
    """

    by_env = ()

    def __init__(self, config: PQN, spec: Spec) -> None:
        parts.check_agents(config.parameter_groups, spec.agents, spec.id)
        if spec.continuous:
            raise UserError(
                f"pqn: needs discrete actions, and those of {spec.id} are continuous; use maddpg, "
                "mappo or perla-mappo"
            )
        self.config, self.spec = config, spec
        self.sequence = config.sequence(spec.limit)
        self.per_agent = config.mixer.per_agent
        self.optimiser = create_optimiser(config.optimizer, config.lr, config.max_grad_norm)

    def init(self, key: PRNGKeyArray) -> Learner:
        """A newly initialised learner."""
        mixer = mixers.IQLMixer() if self.per_agent else mixers.VDNMixer()
        utilities = create_utilities(self.config, self.spec, key, norm_inputs=False)
        values = Factored(utilities, mixer, acts=True)
        return Learner(
            values=values,
            optimiser=self.optimiser.init(values),
            rewards=RunningMeanStd.create(),
            epsilon=jnp.float32(self.config.epsilon_start),
            steps=jnp.int32(0),
        )

    def update(
        self,
        learner: Learner,
        trajectory: Trajectory,
        key: PRNGKeyArray,
        progress: Float[Array, ""],
    ) -> tuple[Learner, Metrics]:
        """Estimate the targets, then make several passes over the trajectory."""
        config = self.config
        learner, batch = self.prepare(learner, trajectory)
        rate = 1.0 - progress if config.anneal_lr else jnp.ones(())

        def epoch(learner, key):
            split = minibatches(batch, config.num_minibatches, self.sequence, key)
            return jax.lax.scan(partial(self.gradient_step, rate=rate), learner, split)

        keys = jax.random.split(key, config.update_epochs)
        learner, metrics = jax.lax.scan(epoch, learner, keys)
        return learner, jax.tree.map(jnp.mean, metrics) | {"epsilon": learner.epsilon}

    def prepare(self, learner: Learner, trajectory: Trajectory) -> tuple[Learner, Batch]:
        """The batch, which stays fixed during all passes; the learner with its statistics and ε
        updated."""
        config, spec = self.config, self.spec
        reward = trajectory.reward if self.per_agent else trajectory.reward.mean(-1, keepdims=True)
        rewards = learner.rewards.update(reward, trajectory.valid)
        if config.normalize_rewards:
            reward = rewards.standardise(reward)
        target = self.targets(learner.values, sequences(trajectory, reward, spec, state=False))

        steps = learner.steps + total(trajectory.valid.sum())
        epsilon = linear_decay(
            config.epsilon_start, config.epsilon_end, config.epsilon_decay_steps, steps
        )
        learner = replace(learner, rewards=rewards, epsilon=epsilon, steps=steps)
        observation, valid = trajectory.observation, trajectory.valid
        return learner, Batch(
            observation=observation,
            is_first=trajectory.is_first,
            hidden_state=trajectory.hidden_state,
            action=trajectory.action,
            target=target,
            mask=loss_mask(valid, observation) if self.per_agent else valid,
        )

    def targets(self, values: Factored, steps: Sequences) -> Float[Array, "time env value"]:
        """The λ-returns of the greedy policy, in which its own values bootstrap (Peng's Q(λ))."""
        outputs = values.unroll(steps, None)
        greedy = mask_values(outputs.values, steps.observation.avail).argmax(-1)
        bootstrap = values.joint(outputs, greedy, steps.observation)
        if self.per_agent:
            common = self.spec.reward == "common"
            bootstrap = mask_dead_agents(bootstrap, steps.observation, common=common)
        # Gₜ = rₜ + γ ((1 − λ) maxₐ Q(sₜ₊₁, a) + λ Gₜ₊₁)
        returns = partial(lambda_returns, gamma=self.config.gamma, lam=self.config.q_lambda)
        each_value = jax.vmap(returns, in_axes=(1, 1, None), out_axes=1)
        return jax.vmap(each_value, in_axes=1, out_axes=1)(
            steps.reward, successor_values(steps, bootstrap), steps.terminated | steps.truncated
        )

    def gradient_step(
        self, learner: Learner, batch: Batch, rate: Float[Array, ""]
    ) -> tuple[Learner, Metrics]:
        """One gradient step on a minibatch, at `rate` times the learning rate."""
        gradient, metrics = grad(self.loss)(learner.values, batch)
        values, optimiser = apply_gradients(
            self.optimiser, gradient, learner.optimiser, learner.values, rate
        )
        learner = replace(learner, values=values, optimiser=optimiser)
        return learner, metrics | {"grad_norm": optax.tree.norm(gradient)}

    def loss(self, values: Factored, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        """The mean squared error of the values of the joint actions taken."""
        observation = batch.observation
        outputs, _ = values.utilities.unroll(
            observation.obs, batch.action, batch.hidden_state[0], batch.is_first
        )
        outputs = mask_dead_utilities(outputs, observation)
        predicted = values.joint(outputs, batch.action, observation)
        loss = mean((predicted - batch.target) ** 2, batch.mask)
        metrics = {"loss": loss, "td_error": jnp.sqrt(loss), "value": mean(predicted, batch.mask)}
        return loss, metrics
