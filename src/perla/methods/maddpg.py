"""The settings of the deterministic-policy-gradient learner."""

from __future__ import annotations

from typing import Literal

from perla.config import Config, Count, Fraction, Groups, NonNegative, Positive
from perla.methods import parts
from perla.methods.parts import Adam, Hard, Huber, RMSProp, Soft, Squared


class GumbelSoftmax(Config, tag="gumbel-softmax", frozen=True):
    """Discrete actions: one is drawn, and what flows back is the gradient of the softmax of the
    noisy logits (Jang et al., 2017)."""

    temperature: Positive = 1.0
    """The softmax's temperature: the lower, the less biased its gradient and the noisier."""


class DDPG(Config, tag="ddpg", frozen=True):
    """Deterministic policy gradients for many agents: every agent's actor climbs its own critic,
    which sees the state and all agents' actions (Lowe et al., 2017)."""

    relaxation: GumbelSoftmax = GumbelSoftmax()
    """How a critic's gradient reaches an actor through the action that it takes."""

    exploration_noise: NonNegative = 0.1
    """Of continuous actions, the deviation of behaviour from what is best, in each dimension; the
    greedy ones are without."""

    num_envs: Count = 16
    """Environment copies stepped side by side."""
    rollout_length: Count | None = 8
    """Steps of every copy between two updates, replayed together as a sequence; none: one whole
    episode of every copy."""
    buffer_size: Count = 8192
    """Sequences kept for replay, the newest ones."""
    batch_size: Count = 32
    """Sequences replayed in a gradient step."""
    updates_per_rollout: Count = 4
    """Gradient steps of actor and critic between two collections."""

    gamma: Fraction = 0.99
    """Discount factor γ."""
    target: Soft | Hard = Soft(target_update_tau=0.01)
    """The actor and the critic that targets are of."""
    logit_penalty: NonNegative = 1e-3
    """Weight of the actors' mean squared logit, which keeps them exploring; of continuous actions,
    of what goes into tanh, which keeps it from its flat ends."""

    loss: Squared | Huber = Squared()
    """The critic's error."""
    normalize_rewards: bool = True
    """Standardise the rewards, by their running mean and deviation."""

    optimizer: Adam | RMSProp = Adam()
    """The optimiser of both networks."""
    lr: Positive = 5e-4
    """The actor's learning rate."""
    critic_lr: Positive | None = None
    """The critic's learning rate; none: the actor's."""
    max_grad_norm: Positive | None = 10.0
    """Bound on the norm of each network's gradient; none: unbounded."""

    actor_network: Literal["mlp", "gru"] = "gru"
    """The actor's network; `gru` puts a recurrent layer after the dense ones."""
    hidden_size: Count = 128
    """Width of every hidden layer."""
    num_layers: Count = 1
    """Dense hidden layers of the actor."""
    critic_num_layers: Count = 2
    """Hidden layers of the critic, which is dense."""
    init: Literal["orthogonal", "torch"] = "orthogonal"
    """Initial weights: orthogonal with a small policy head, or PyTorch's default."""
    layer_norm: bool = False
    """Normalise the inputs and the output of every hidden layer."""
    parameter_sharing: Literal["shared", "separate"] = "shared"
    """One set of parameters for all agents, or one for each."""
    parameter_groups: Groups = None
    """Of each agent, the number of its group, such as 0,0,1: who shares parameters with whom, where
    not with all."""
    agent_ids: bool = True
    """Tell shared networks which agent they serve."""
    last_action: bool = False
    """Tell actors what they did last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parts.check_buffer(self.buffer_size, self.num_envs)
        parts.check_groups(self.parameter_sharing, self.parameter_groups)

    def nets(self, agents: int) -> Groups:
        """Which of `agents` share parameters."""
        return (
            parts.one_each(agents)
            if self.parameter_sharing == "separate"
            else self.parameter_groups
        )

    def length(self, limit: int | None) -> int:
        """Steps of every copy between two updates; whole episodes are padded to the limit."""
        return parts.length(self.rollout_length, limit)
