"""Settings of the deterministic-policy-gradient learner."""

from __future__ import annotations

from typing import Literal

from perla.config import Config, Count, NonNegative, Positive
from perla.methods.offpolicy import OffPolicy


class GumbelSoftmax(Config, tag="gumbel-softmax", frozen=True):
    """Straight-through Gumbel-softmax for discrete actions: the forward pass uses a sampled action,
    the backward pass the softmax of the noisy logits (Jang et al., 2017)."""

    temperature: Positive = 1.0
    """Temperature of the softmax: a lower one has a gradient of less bias and more variance."""


class DDPG(OffPolicy, tag="ddpg", frozen=True):
    """MADDPG: deterministic policy gradients with a centralised critic per agent, which takes the
    state and all agents' actions (Lowe et al., 2017)."""

    decided = ("relaxation",)

    relaxation: GumbelSoftmax = GumbelSoftmax()
    """Relaxation by which a critic's gradient reaches the actor through a discrete action."""

    exploration_noise: NonNegative = 0.1
    """Standard deviation of the behaviour policy about the mean in each dimension of a continuous
    action; greedy actions have no noise."""

    logit_penalty: NonNegative = 1e-3
    """Weight of the actors' mean squared logit, which keeps policies exploring; for continuous
    actions, of the squared input of tanh, which keeps it from saturating."""

    lr: Positive = 5e-4
    """Learning rate of the actor."""
    critic_lr: Positive | None = None
    """Learning rate of the critic; none: that of the actor."""

    critic_num_layers: Count = 2
    """Dense hidden layers of the critic."""
    init: Literal["orthogonal", "torch"] = "orthogonal"
    """Initial weights: orthogonal with a small policy head, or PyTorch's default."""
