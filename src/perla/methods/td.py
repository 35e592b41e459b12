"""The settings of the value-decomposition learner."""

from __future__ import annotations

from typing import Literal

from perla.config import Config, Count, Fraction, Groups, NonNegative, Positive
from perla.errors import UserError
from perla.methods import parts
from perla.methods.parts import Adam, Hard, Huber, RMSProp, Soft, Squared


class IQLMixer(Config, tag="iql", frozen=True):
    """No mixing: every agent learns its own value from its own reward (IQL)."""


class VDNMixer(Config, tag="vdn", frozen=True):
    """Q_tot = Σᵢ Qᵢ (VDN)."""


class QMIXMixer(Config, tag="qmix", frozen=True):
    """Q_tot = f(s, Q₁, …, Q_N), monotonic in every Qᵢ (QMIX)."""

    mixing_embed_dim: Count = 32
    """Units of the mixer's hidden layer."""
    hypernet_embed: Count = 64
    """Units of the hidden layer of the mixer's hypernetworks."""


class QPLEXMixer(Config, tag="qplex", frozen=True):
    """Q_tot = Σᵢ Vᵢ + Σᵢ λᵢ(s, a) Aᵢ with positive λᵢ: any joint value whose greedy joint action
    consists of the agents' greedy actions (QPLEX)."""

    num_kernels: Count = 10
    """Terms in the sum λᵢ(s, a), the weight of an advantage."""
    kernel_layers: Count = 3
    """Dense layers of each term's networks, including the output."""
    kernel_hidden: Count = 64
    """Units of the hidden layers of these networks, and of those that weight the utilities."""


class QTRANMixer(Config, tag="qtran", frozen=True):
    """An unrestricted joint value Q(s, a), and Σᵢ Qᵢ + V(s) that is regressed on it so that the
    agents' greedy actions ā are the greedy joint action (QTRAN)."""

    condition: Literal["base", "alt"] = "base"
    """Constraint on Σᵢ Qᵢ + V − Q, which is zero at ā. `base`: it is nowhere negative. `alt`: its
    minimum over an agent's actions is zero, for all actions of the others."""
    opt_coef: NonNegative = 1.0
    """Weight of the squared difference at ā."""
    nopt_coef: NonNegative = 1.0
    """Weight of the squared violation of the constraint."""
    joint_hidden: Count = 64
    """Units of the hidden layers of Q(s, a), of V(s) and of an agent's encoding in Q."""


class MAICMessages(Config, tag="maic", frozen=True):
    """Messages between agents before they act: agent i models agent j by a latent zᵢⱼ and shifts
    the utilities of j by a message mᵢⱼ (MAIC)."""

    latent_dim: Count = 8
    """Dimensions of a latent."""
    latent_var_floor: Positive = 0.002
    """Smallest variance of a latent."""
    attention_dim: Count = 32
    """Dimensions of the attention over teammates that weights an agent's messages."""
    message_hidden: Count = 64
    """Units of the hidden layers for latents and messages."""
    prune: Fraction = 0.25
    """Attention weight, in units of 1/N, below which greedy agents do not send a message."""
    latent_coef: NonNegative = 0.001
    """Weight of the divergence of latents from their posterior given the teammate's action."""
    attention_coef: NonNegative = 0.01
    """Weight of the attention's entropy, which is minimized."""


class Uniform(Config, tag="uniform", frozen=True):
    """Equal weights of all errors."""


class Weighted(Config, tag="weighted", frozen=True):
    """Smaller weights for errors at joint actions that are not optimal, and targets from a central,
    unrestricted Q̂ (WQMIX)."""

    full: Literal["optimistic", "central"] = "optimistic"
    """Errors with weight 1. `optimistic`: those of steps that Q_tot underestimates (OW). `central`:
    those of greedy joint actions, and of targets above Q̂ at the greedy joint action (CW)."""
    alpha: Fraction = 0.1
    """Weight of all other errors."""


class TD(Config, tag="td", frozen=True):
    """Value decomposition: Q-learning of a joint value mixed from the agents' utilities, whose
    greedy actions are decentralised (Rashid et al., 2018)."""

    mixer: IQLMixer | VDNMixer | QMIXMixer | QPLEXMixer | QTRANMixer = VDNMixer()
    """The mixer: the joint value as a function of the agents' utilities."""
    weighting: Uniform | Weighted = Uniform()
    """Weights of the errors."""
    communication: MAICMessages | None = None
    """Messages between agents before they act; none: no messages."""

    num_envs: Count = 16
    """Environments stepped in parallel."""
    rollout_length: Count | None = 8
    """Steps per environment between two updates, stored as one sequence; none: an episode."""
    buffer_size: Count = 8192
    """Capacity of the replay buffer, in sequences."""
    batch_size: Count = 32
    """Sequences per gradient step."""
    updates_per_rollout: Count = 4
    """Gradient steps per rollout."""

    gamma: Fraction = 0.99
    """Discount factor γ."""
    double_q: bool = True
    """Double Q-learning: the online network chooses the greedy actions of the targets."""
    target: Soft | Hard = Soft(target_update_tau=0.01)
    """Target network, for bootstrap values."""

    epsilon_start: Fraction = 1.0
    """Probability of random actions at the start."""
    epsilon_end: Fraction = 0.05
    """Probability of random actions at the end, reached linearly."""
    epsilon_decay_steps: Count = 50_000
    """Environment steps from the one to the other."""

    loss: Squared | Huber = Squared()
    """Loss of the joint value."""
    normalize_rewards: bool = True
    """Normalize rewards by their running mean and standard deviation."""

    optimizer: Adam | RMSProp = Adam()
    """Optimizer of all networks."""
    lr: Positive = 5e-4
    """Learning rate."""
    max_grad_norm: Positive | None = 10.0
    """Largest norm of the gradient; none: no clipping."""

    actor_network: Literal["mlp", "gru"] = "gru"
    """Network of the agents: dense layers only, or dense layers and a GRU."""
    hidden_size: Count = 128
    """Units of every hidden layer."""
    num_layers: Count = 1
    """Dense hidden layers."""
    init: Literal["orthogonal", "torch"] = "orthogonal"
    """Initial weights: orthogonal except in the hidden layers of mixers, or PyTorch's default."""
    layer_norm: bool = False
    """Layer normalization of the inputs and of every hidden layer."""
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
        parts.check_buffer(self.buffer_size, self.num_envs)
        parts.check_groups(self.parameter_sharing, self.parameter_groups)
        if isinstance(self.weighting, Weighted):
            if not self.double_q:
                raise UserError(
                    "double_q = false: targets of a weighted mixer take its own greedy actions"
                )
            if isinstance(self.mixer, IQLMixer):
                raise UserError("weighting = weighted: there is no joint value to weigh")
            if isinstance(self.mixer, QTRANMixer):
                raise UserError(
                    "weighting = weighted: the joint value of QTRAN is restricted by nothing; "
                    "weight its constraints by opt_coef and nopt_coef"
                )

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
