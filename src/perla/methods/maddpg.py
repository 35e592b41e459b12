"""The settings of the deterministic-policy-gradient learner."""

from __future__ import annotations

from typing import Literal

from perla.config import Config, Count, Fraction, Groups, NonNegative, Positive
from perla.methods import parts
from perla.methods.parts import Adam, Hard, Huber, RMSProp, Soft, Squared


class GumbelSoftmax(Config, tag="gumbel-softmax", frozen=True):
    """Straight-through Gumbel-softmax for discrete actions: a sample forwards, the gradient of the
    softmax of the noisy logits backwards (Jang et al., 2017)."""

    temperature: Positive = 1.0
    """Temperature of the softmax: lower values trade bias of the gradient for variance."""


class DDPG(Config, tag="ddpg", frozen=True):
    """Multi-agent deterministic policy gradients: every agent has an actor, and a critic of the
    state and all agents' actions (Lowe et al., 2017)."""

    relaxation: GumbelSoftmax = GumbelSoftmax()
    """Relaxation of discrete actions, which lets the critic's gradient reach the actor."""

    exploration_noise: NonNegative = 0.1
    """Standard deviation of the noise on continuous actions in training, per dimension."""

    num_envs: Count = 16
    """Environments stepped in parallel."""
    rollout_length: Count | None = 8
    """Steps per environment between two updates, stored as one sequence; none: an episode."""
    buffer_size: Count = 8192
    """Capacity of the replay buffer, in sequences."""
    batch_size: Count = 32
    """Sequences per gradient step."""
    updates_per_rollout: Count = 4
    """Gradient steps of actor and critic per rollout."""

    gamma: Fraction = 0.99
    """Discount factor γ."""
    target: Soft | Hard = Soft(target_update_tau=0.01)
    """Target network of the actor and of the critic."""
    logit_penalty: NonNegative = 1e-3
    """Weight of the actors' mean squared logits, which keeps policies stochastic. For continuous
    actions: of the inputs of tanh, which keeps it from saturating."""

    loss: Squared | Huber = Squared()
    """Loss of the critic."""
    normalize_rewards: bool = True
    """Normalize rewards by their running mean and standard deviation."""

    optimizer: Adam | RMSProp = Adam()
    """Optimizer of both networks."""
    lr: Positive = 5e-4
    """Learning rate of the actor."""
    critic_lr: Positive | None = None
    """Learning rate of the critic; none: that of the actor."""
    max_grad_norm: Positive | None = 10.0
    """Largest norm of each network's gradient; none: no clipping."""

    actor_network: Literal["mlp", "gru"] = "gru"
    """Network of the actor: dense layers only, or dense layers and a GRU."""
    hidden_size: Count = 128
    """Units of every hidden layer."""
    num_layers: Count = 1
    """Dense hidden layers of the actor."""
    critic_num_layers: Count = 2
    """Dense hidden layers of the critic."""
    init: Literal["orthogonal", "torch"] = "orthogonal"
    """Initial weights: orthogonal with a small policy head, or PyTorch's default."""
    layer_norm: bool = False
    """Layer normalization of the inputs and of every hidden layer."""
    parameter_sharing: Literal["shared", "separate"] = "shared"
    """`shared`: one set of parameters for all agents. `separate`: one per agent."""
    parameter_groups: Groups = None
    """Group of each agent, such as 0,0,1: agents of a group share parameters; none: all do."""
    agent_ids: bool = True
    """Append a one-hot agent id to the inputs of shared networks."""
    last_action: bool = False
    """Append the agent's last action to its observation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parts.check_buffer(self.buffer_size, self.num_envs)
        parts.check_groups(self.parameter_sharing, self.parameter_groups)

    def nets(self, agents: int) -> Groups:
        """The groups of `agents` that share parameters."""
        return (
            parts.one_each(agents)
            if self.parameter_sharing == "separate"
            else self.parameter_groups
        )

    def length(self, limit: int | None) -> int:
        """Steps of a rollout; whole episodes are padded to the `limit` of the environment."""
        return parts.length(self.rollout_length, limit)
