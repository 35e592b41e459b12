"""The settings of the actor-critic learner."""

from __future__ import annotations

from typing import Literal

from perla.config import Config, Count, Fraction, Groups, NonNegative, Positive
from perla.errors import UserError
from perla.methods import parts
from perla.methods.method import Method
from perla.methods.parts import Adam, Hard, Huber, RMSProp, Soft, Squared
from perla.methods.values import Centralised, Counterfactual, Embedded, Independent

CONTINUOUS = ("init_std", "tanh_squash")
"""Settings of `PPO` for continuous actions."""


class NStep(Config, tag="n-step", frozen=True):
    """n-step returns: Σ_{k<n} γᵏ r_{t+k} + γⁿ V(s_{t+n})."""

    n_step: Count = 5
    """Number n of rewards before the bootstrap value."""


class GAE(Config, tag="gae", frozen=True):
    """λ-returns: the advantage is the generalized advantage estimate."""

    gae_lambda: Fraction = 0.95
    """λ: 0 is one-step bootstrapping, 1 the Monte Carlo return."""


class PPO(Method, tag="ppo", frozen=True):
    """Multi-agent proximal policy optimization (with `clip_eps` none: advantage actor-critic)."""

    decided = ("value",)

    value: Independent | Centralised | Counterfactual | Embedded = Independent()
    """The critic."""

    num_envs: Count = 32
    """Environments stepped in parallel."""
    rollout_length: Count | None = 32
    """Steps per environment between two updates; none: an episode."""
    update_epochs: Count = 4
    """Passes over the rollout in an update."""
    critic_epochs: Count | None = None
    """Passes of the critic, before those of the actor; none: both take the same passes."""
    num_minibatches: Count = 1
    """Minibatches per pass."""
    bptt_length: Count | None = None
    """Steps of truncated backpropagation through a GRU; none: the whole rollout."""

    gamma: Fraction = 0.99
    """Discount factor γ."""
    returns: GAE | NStep = GAE()
    """Returns: the targets of the critic."""
    target: Soft | Hard | None = None
    """Target network of the critic, for bootstrap values; none: the critic itself."""

    clip_eps: Positive | None = 0.2
    """Clipping ε of the probability ratio; none: the unclipped policy gradient (A2C)."""
    ent_coef: NonNegative = 0.01
    """Weight of the entropy bonus."""
    ent_coef_final: NonNegative | None = 0.0
    """Weight of the entropy bonus at the end of the run, reached linearly; none: constant."""
    init_std: Positive = 1.0
    """Initial standard deviation of continuous actions, per dimension; it is learnt and does not
    depend on the state."""
    tanh_squash: bool = False
    """Squash continuous actions by tanh into (-1, 1), instead of clipping them."""
    normalize_advantages: bool = False
    """Normalize the advantages of each minibatch."""
    refresh_advantages: bool = False
    """Recompute the baseline of the advantages in every pass, instead of once per rollout."""

    loss: Squared | Huber = Squared()
    """Loss of the critic."""
    value_clip_eps: Positive | None = None
    """Largest change of a value in an update (value clipping); none: no clipping."""
    value_coef: Positive = 1.0
    """Weight of the critic's loss; it matters only if its gradient is clipped."""
    normalize_values: bool = False
    """Normalize the critic's targets by their running mean and standard deviation."""
    normalize_rewards: bool = True
    """Normalize rewards by their running mean and standard deviation."""

    optimizer: Adam | RMSProp = Adam()
    """Optimizer of both networks."""
    lr: Positive = 1e-3
    """Learning rate of the actor."""
    critic_lr: Positive | None = None
    """Learning rate of the critic; none: that of the actor."""
    anneal_lr: bool = False
    """Anneal the learning rates linearly to zero over the run."""
    max_grad_norm: Positive | None = 10.0
    """Largest norm of each network's gradient; none: no clipping."""
    order: Literal["simultaneous", "sequential"] = "simultaneous"
    """Update of the agents' policies: all at once, or one after another in random order, with the
    advantage weighted by the ratios of the earlier ones (HAPPO)."""

    actor_network: Literal["mlp", "gru"] = "gru"
    """Network of the actor: dense layers only, or dense layers and a GRU."""
    critic_network: Literal["mlp", "gru"] = "mlp"
    """Network of the critic: dense layers only, or dense layers and a GRU."""
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
    parameter_sharing: Literal["shared", "critic", "separate"] = "shared"
    """`shared`: one actor and one critic for all agents. `critic`: one actor per agent, one critic
    for all. `separate`: one actor and one critic per agent."""
    parameter_groups: Groups = None
    """Group of each agent, such as 0,0,1: agents of a group share parameters; none: all do. With
    `--parameter-sharing critic` the groups share actors only."""
    agent_ids: bool = True
    """Append a one-hot agent id to the inputs of shared networks."""

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
                    "order = sequential with parameter_groups = "
                    f"{parts.format_groups(self.parameter_groups)}: agents that share an actor "
                    "cannot be updated one after another; leave parameter_groups out"
                )
            if self.parameter_sharing == "shared":
                raise UserError(
                    "order = sequential: agents that share an actor cannot be updated one after "
                    "another; use parameter_sharing critic or separate"
                )
            if self.clip_eps is None:
                raise UserError(
                    "order = sequential with clip_eps = none: nothing would bound the ratios by "
                    "which later agents' advantages are weighed; set clip_eps, such as 0.2"
                )

    def actors(self, agents: int) -> Groups:
        """The groups of `agents` that share an actor."""
        if self.parameter_groups is None and self.parameter_sharing != "shared":
            return parts.one_each(agents)
        return self.parameter_groups

    def critics(self, agents: int) -> Groups:
        """The groups of `agents` that share a critic."""
        return None if self.parameter_sharing == "critic" else self.actors(agents)

    @property
    def recurrent(self) -> bool:
        """True if the actor or the critic is recurrent."""
        return "gru" in (self.actor_network, self.critic_network)

    def length(self, limit: int | None) -> int:
        """Steps of a rollout; whole episodes are padded to the `limit` of the environment."""
        return parts.length(self.rollout_length, limit)

    def sequence(self, limit: int | None) -> int:
        """Steps of the sequences in a minibatch: single steps without a GRU.

        Raises `UserError` if the sequences do not divide the rollout, or the minibatches them.
        """
        length = self.length(limit)
        sequence = (self.bptt_length or length) if self.recurrent else 1
        if length % sequence:
            raise UserError(f"bptt_length = {sequence}: must divide the rollout of {length} steps")
        sequences = self.num_envs * length // sequence
        if sequences % self.num_minibatches:
            raise UserError(
                f"num_minibatches = {self.num_minibatches}: must divide the {sequences} sequences "
                f"of {self.num_envs} environments in {length} steps"
            )
        return sequence
