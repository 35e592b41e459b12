"""The settings of the actor-critic learner."""

from __future__ import annotations

from typing import Literal

from perla.config import Config, Count, Fraction, Groups, NonNegative, Positive
from perla.errors import UserError
from perla.methods import parts
from perla.methods.parts import Adam, Hard, Huber, RMSProp, Soft, Squared
from perla.methods.values import Centralised, Counterfactual, Embedded, Independent

CONTINUOUS = ("init_std", "tanh_squash")
"""Settings of `PPO` that belong to continuous actions."""


class NStep(Config, tag="n-step", frozen=True):
    """Σ_{k<n} γᵏ r_{t+k} + γⁿ V(s_{t+n})."""

    n_step: Count = 5
    """Rewards summed before the value takes over."""


class GAE(Config, tag="gae", frozen=True):
    """λ-returns: the advantage is the generalised advantage estimate."""

    gae_lambda: Fraction = 0.95
    """λ: 0 is one-step bootstrapping, 1 is the Monte-Carlo return."""


class PPO(Config, tag="ppo", frozen=True):
    """Proximal policy optimisation for many agents (clip none: advantage actor-critic)."""

    value: Independent | Centralised | Counterfactual | Embedded = Independent()
    """What the critic sees."""

    num_envs: Count = 32
    """Environment copies stepped side by side."""
    rollout_length: Count | None = 32
    """Steps of every copy between two updates; none: one whole episode of every copy."""
    update_epochs: Count = 4
    """Passes over the collected steps in an update."""
    critic_epochs: Count | None = None
    """Passes of the critic, made before the actor's; none: both are made together."""
    num_minibatches: Count = 1
    """Parts into which each pass is cut."""
    bptt_length: Count | None = None
    """Steps through which a GRU's gradient flows in a minibatch; none: the whole horizon."""

    gamma: Fraction = 0.99
    """Discount factor γ."""
    returns: GAE | NStep = GAE()
    """How rewards and values become targets."""
    target: Soft | Hard | None = None
    """The critic that targets bootstrap from; none: the critic itself."""

    clip_eps: Positive | None = 0.2
    """PPO's bound on the probability ratio; none: the plain policy gradient (A2C)."""
    ent_coef: NonNegative = 0.01
    """Weight of the entropy bonus."""
    ent_coef_final: NonNegative | None = 0.0
    """Its weight at the end of the run, reached linearly; none: it stays."""
    init_std: Positive = 1.0
    """Of continuous actions, the initial standard deviation in each dimension; it is learnt, and is
    the same in every state."""
    tanh_squash: bool = False
    """Put continuous actions through tanh, into (-1, 1), rather than clip them for the world."""
    normalize_advantages: bool = False
    """Standardise the advantages of each minibatch."""
    refresh_advantages: bool = False
    """Subtract the critic's present value in every pass, rather than its value when the steps
    were collected."""

    loss: Squared | Huber = Squared()
    """The critic's error."""
    value_clip_eps: Positive | None = None
    """Bound on a value's change in an update; none: unbounded."""
    value_coef: Positive = 1.0
    """Weight of the critic's error, which matters where its gradient is clipped."""
    normalize_values: bool = False
    """Learn standardised targets, by their running mean and deviation."""
    normalize_rewards: bool = True
    """Standardise the rewards, by their running mean and deviation."""

    optimizer: Adam | RMSProp = Adam()
    """The optimiser of both networks."""
    lr: Positive = 1e-3
    """The actor's learning rate."""
    critic_lr: Positive | None = None
    """The critic's learning rate; none: the actor's."""
    anneal_lr: bool = False
    """Let the learning rates fall linearly to zero at the end of the run."""
    max_grad_norm: Positive | None = 10.0
    """Bound on the norm of each network's gradient; none: unbounded."""
    order: Literal["simultaneous", "sequential"] = "simultaneous"
    """Whether all agents' policies move at once, or one after another in random order, each by what
    those before it have become (HAPPO)."""

    actor_network: Literal["mlp", "gru"] = "gru"
    """The actor's network; `gru` puts a recurrent layer after the dense ones."""
    critic_network: Literal["mlp", "gru"] = "mlp"
    """The critic's network."""
    hidden_size: Count = 128
    """Width of every hidden layer."""
    num_layers: Count = 1
    """Dense hidden layers of the actor."""
    critic_num_layers: Count = 2
    """Dense hidden layers of the critic."""
    init: Literal["orthogonal", "torch"] = "orthogonal"
    """Initial weights: orthogonal with a small policy head, or PyTorch's default."""
    layer_norm: bool = False
    """Normalise the inputs and the output of every hidden layer."""
    parameter_sharing: Literal["shared", "critic", "separate"] = "shared"
    """`shared`: one set of parameters for all agents. `critic`: an actor for each, one critic for
    all. `separate`: both for each."""
    parameter_groups: Groups = None
    """Of each agent, the number of its group, such as 0,0,1: who shares parameters with whom, where
    not with all; sharing `critic`: an actor for each group."""
    agent_ids: bool = True
    """Tell shared networks which agent they serve."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bptt_length is not None and not self.recurrent:
            raise UserError(
                f"bptt_length = {self.bptt_length}: only a GRU has a gradient through time"
            )
        parts.check_groups(self.parameter_sharing, self.parameter_groups)
        if self.order == "sequential":
            if self.parameter_groups is not None:
                raise UserError(
                    f"order = sequential with parameter_groups = {parts.format_groups(self.parameter_groups)}: agents whose "
                    "actors are one move together; leave parameter_groups out"
                )
            if self.parameter_sharing == "shared":
                raise UserError(
                    "order = sequential: agents whose actors are one move together; use "
                    "parameter_sharing "
                    "critic or separate"
                )
            if self.clip_eps is None:
                raise UserError(
                    "order = sequential with clip_eps = none: nothing would bound the ratios by which "
                    "later agents' advantages are weighed; set clip_eps, such as 0.2"
                )

    def actors(self, agents: int) -> Groups:
        """Which of `agents` share an actor."""
        if self.parameter_groups is None and self.parameter_sharing != "shared":
            return parts.one_each(agents)
        return self.parameter_groups

    def critics(self, agents: int) -> Groups:
        """Which of `agents` share a critic."""
        return None if self.parameter_sharing == "critic" else self.actors(agents)

    @property
    def recurrent(self) -> bool:
        """Whether any network has a memory."""
        return "gru" in (self.actor_network, self.critic_network)

    def length(self, limit: int | None) -> int:
        """Steps of every copy between two updates; whole episodes are padded to the limit."""
        return parts.length(self.rollout_length, limit)

    def sequence(self, limit: int | None) -> int:
        """Steps of the sequences that minibatches are made of: single steps without a GRU.

        Raises `UserError` where the numbers do not divide each other.
        """
        length = self.length(limit)
        sequence = (self.bptt_length or length) if self.recurrent else 1
        if length % sequence:
            raise UserError(f"bptt_length = {sequence}: must divide the horizon of {length} steps")
        sequences = self.num_envs * length // sequence
        if sequences % self.num_minibatches:
            raise UserError(
                f"num_minibatches = {self.num_minibatches}: must divide the {sequences} sequences that "
                f"{self.num_envs} copies make in {length} steps"
            )
        return sequence
