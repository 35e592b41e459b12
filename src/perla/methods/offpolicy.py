"""Settings shared by the off-policy learners, which learn from a replay buffer."""

from __future__ import annotations

from typing import Literal

from perla.config import Config, Count, Fraction, Groups, Positive
from perla.methods import parts
from perla.methods.parts import Adam, Hard, Huber, RMSProp, Soft, Squared


class OffPolicy(Config, frozen=True):
    """Settings of data collection, replay, targets, optimisation and networks."""

    num_envs: Count = 16
    """Environments stepped in parallel."""
    rollout_length: Count | None = 8
    """Steps of every environment between two updates, replayed together as a sequence; none: one
    whole episode of every environment."""
    buffer_size: Count = 8192
    """Capacity of the replay buffer, in sequences; the newest are kept."""
    batch_size: Count = 32
    """Sequences in the batch of a gradient step."""
    updates_per_rollout: Count = 4
    """Gradient steps between two rollouts."""

    gamma: Fraction = 0.99
    """Discount factor γ."""
    target: Soft | Hard = Soft(target_update_tau=0.01)
    """The target networks, from which targets bootstrap."""

    loss: Squared | Huber = Squared()
    """Loss of the temporal-difference error."""
    normalize_rewards: bool = True
    """Standardise rewards by their running mean and standard deviation."""

    optimizer: Adam | RMSProp = Adam()
    """Optimiser of all networks."""
    lr: Positive = 5e-4
    """Learning rate."""
    max_grad_norm: Positive | None = 10.0
    """Bound on the norm of each optimiser's gradient; none: unbounded."""

    actor_network: Literal["mlp", "gru"] = "gru"
    """The agents' network; `gru` puts a recurrent layer after the dense ones."""
    hidden_size: Count = 128
    """Width of every hidden layer."""
    num_layers: Count = 1
    """Dense hidden layers of the agents' network."""
    init: Literal["orthogonal", "torch"] = "orthogonal"
    """Initial weights: orthogonal, or PyTorch's default."""
    layer_norm: bool = False
    """Normalise the inputs and the output of every hidden layer."""
    parameter_sharing: Literal["shared", "separate"] = "shared"
    """One set of parameters for all agents, or one for each."""
    parameter_groups: Groups = None
    """The group of each agent, such as 0,0,1: agents of one group share parameters. None: all
    share."""
    agent_ids: bool = True
    """Give shared networks the agent's id as an input."""
    last_action: bool = False
    """Give the agents' network the agent's last action as an input."""

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
