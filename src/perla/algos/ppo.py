"""The actor-critic learner: one PPO whose variants are arguments."""

from __future__ import annotations

from typing import Literal

from perla.algos.values import Centralised, Embedded, Independent
from perla.config import Config, Count, Fraction, NonNegative, Positive


class NStep(Config, tag="n-step"):
    """Σ_{k<n} γᵏ r_{t+k} + γⁿ V(s_{t+n})."""

    n: Count = 5
    """Rewards summed before the value takes over."""


class GAE(Config, tag="gae"):
    """λ-returns: the advantage is the generalised advantage estimate."""

    lam: Fraction = 0.95
    """λ: 0 is one-step bootstrapping, 1 is the Monte-Carlo return."""


class Soft(Config, tag="soft"):
    """The target critic moves towards the critic after every update."""

    tau: Fraction = 0.01
    """Share of the way that it moves."""


class Hard(Config, tag="hard"):
    """The target critic is a copy of the critic, renewed now and then."""

    every: Count = 200
    """Updates between copies."""


class Squared(Config, tag="squared"):
    """Squared error."""


class Huber(Config, tag="huber"):
    """Squared error near zero, absolute error beyond."""

    delta: Positive = 10.0
    """Where the two meet."""


class Adam(Config, tag="adam"):
    """Adam."""

    eps: Positive = 1e-8
    """Added to the root of the second moment."""


class RMSProp(Config, tag="rmsprop"):
    """RMSProp."""

    decay: Fraction = 0.99
    """Decay of the second moment."""
    momentum: Fraction = 0.0
    """Decay of the first moment; 0 is none."""
    rms_eps: Positive = 1e-5
    """Added to the root of the second moment."""


class PPO(Config, tag="ppo"):
    """Proximal policy optimisation for many agents (clip none: advantage actor-critic)."""

    value: Independent | Centralised | Embedded = Independent()
    """What the critic sees."""

    copies: Count = 32
    """Environment copies stepped side by side."""
    horizon: Count = 64
    """Steps of every copy between two updates."""
    epochs: Count = 4
    """Passes over the collected steps in an update."""
    minibatches: Count = 1
    """Parts into which each pass is cut."""
    chunk: Count | None = None
    """Steps through which a GRU's gradient flows in a minibatch; none: the whole horizon."""

    gamma: Fraction = 0.99
    """Discount factor γ."""
    returns: GAE | NStep = GAE()
    """How rewards and values become targets."""
    target: Soft | Hard | None = None
    """The critic that targets bootstrap from; none: the critic itself."""

    clip: Positive | None = 0.2
    """PPO's bound on the probability ratio; none: the plain policy gradient (A2C)."""
    entropy: NonNegative = 0.01
    """Weight of the entropy bonus."""
    normalise_advantages: bool = True
    """Standardise the advantages of each minibatch."""
    refresh_advantages: bool = False
    """Subtract the critic's present value in every pass, rather than its value when the steps
    were collected."""

    loss: Squared | Huber = Squared()
    """The critic's error."""
    value_clip: Positive | None = None
    """Bound on a value's change in an update; none: unbounded."""
    value_coef: Positive = 1.0
    """Weight of the critic's error, which matters where its gradient is clipped."""
    normalise_values: bool = False
    """Learn standardised targets, by their running mean and deviation."""
    normalise_rewards: bool = False
    """Standardise the rewards, by their running mean and deviation."""

    optimiser: Adam | RMSProp = Adam()
    """The optimiser of both networks."""
    lr: Positive = 5e-4
    """The actor's learning rate."""
    critic_lr: Positive | None = None
    """The critic's learning rate; none: the actor's."""
    lr_decay: bool = False
    """Let the learning rates fall linearly to zero at the end of the run."""
    max_grad_norm: Positive | None = 10.0
    """Bound on the norm of each network's gradient; none: unbounded."""

    actor: Literal["mlp", "gru"] = "mlp"
    """The actor's network; `gru` puts a recurrent layer after the dense ones."""
    critic: Literal["mlp", "gru"] = "mlp"
    """The critic's network."""
    hidden: Count = 128
    """Width of every hidden layer."""
    layers: Count = 2
    """Dense hidden layers of the actor."""
    critic_layers: Count | None = None
    """Dense hidden layers of the critic; none: the actor's."""
    init: Literal["orthogonal", "torch"] = "orthogonal"
    """Initial weights: orthogonal with a small policy head, or PyTorch's default."""
    layer_norm: bool = False
    """Normalise the inputs and the output of every hidden layer."""
    sharing: Literal["shared", "separate"] = "shared"
    """One set of parameters for all agents, or one for each."""
    agent_ids: bool = True
    """Tell the networks which agent they serve."""

    @property
    def steps_per_update(self) -> int:
        """Environment steps between two updates, summed over copies."""
        return self.copies * self.horizon
