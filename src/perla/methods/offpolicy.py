"""Settings shared by the off-policy learners, which learn from a replay buffer."""

from __future__ import annotations

from typing import Literal

from perla.config import Count, Fraction, Groups, Positive
from perla.methods import parts
from perla.methods.method import Method
from perla.methods.parts import Adam, Hard, Huber, RMSProp, Soft, Squared


class OffPolicy(Method, frozen=True):
    """Settings of data collection, replay, targets, optimisation and networks."""

    num_envs: Count = 16
    """Environments stepped in parallel."""
    rollout_length: Count | None = 8
    """Steps per environment between two updates, replayed together as a sequence; none: an
    episode."""
    buffer_size: Count = 8192
    """Capacity of the replay buffer, in sequences; the newest are kept."""
    batch_size: Count = 32
    """Sequences in the batch of a gradient step."""
    updates_per_rollout: Count = 4
    """Gradient steps between two rollouts."""

    gamma: Fraction = 0.99
    """Discount factor γ."""
    target: Soft | Hard = Soft(target_update_tau=0.01)
    """Target network of every learnt value, for bootstrap values."""

    loss: Squared | Huber = Squared()
    """Loss of the temporal-difference error."""
    normalize_rewards: bool = True
    """Normalize rewards by their running mean and standard deviation."""

    optimizer: Adam | RMSProp = Adam()
    """Optimizer of all networks."""
    lr: Positive = 5e-4
    """Learning rate of all networks."""
    max_grad_norm: Positive | None = 10.0
    """Largest norm of each optimizer's gradient; none: no clipping."""

    actor_network: Literal["mlp", "gru"] = "gru"
    """Network of the agents: dense layers only, or dense layers and a GRU."""
    hidden_size: Count = 128
    """Units of every hidden layer."""
    num_layers: Count = 1
    """Dense hidden layers of the agents' network."""
    init: Literal["orthogonal", "torch"] = "orthogonal"
    """Initial weights: orthogonal, or PyTorch's default."""
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
        """The parameter group of each of `agents`."""
        if self.parameter_sharing == "separate":
            return parts.one_each(agents)
        return self.parameter_groups

    def length(self, limit: int | None) -> int:
        """Steps of every environment between two updates; whole episodes are padded to `limit`."""
        return parts.length(self.rollout_length, limit)
