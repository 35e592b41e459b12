"""The settings of the value-decomposition learner."""

from __future__ import annotations

from typing import Literal

from perla.config import Config, Count, Fraction, Groups, NonNegative, Positive
from perla.errors import UserError
from perla.methods import parts
from perla.methods.parts import Adam, Hard, Huber, RMSProp, Soft, Squared


class IQLMixer(Config, tag="iql", frozen=True):
    """Nothing is mixed: every agent learns its own value from its own reward (IQL)."""


class VDNMixer(Config, tag="vdn", frozen=True):
    """Q_tot = Σᵢ Qᵢ (VDN)."""


class QMIXMixer(Config, tag="qmix", frozen=True):
    """Q_tot = f(s, Q₁, …, Q_N), which rises with every Qᵢ (QMIX)."""

    mixing_embed_dim: Count = 32
    """Width of the mixer's hidden layer."""
    hypernet_embed: Count = 64
    """Width of the hidden layer of the networks that make its weights from the state."""


class QPLEXMixer(Config, tag="qplex", frozen=True):
    """Values and advantages, mixed apart: any Q_tot whose best joint action is that of the agents'
    own best ones (QPLEX)."""

    num_kernels: Count = 10
    """Terms of which an advantage's weight λᵢ(s, a) is the sum."""
    kernel_layers: Count = 3
    """Dense layers of each term's networks, the last included."""
    kernel_hidden: Count = 64
    """Width of their hidden layers, and of those that weigh the utilities."""


class QTRANMixer(Config, tag="qtran", frozen=True):
    """Any joint value Q(s, a) at all, and a sum of utilities plus V(s) that is held to it, so that
    the agents' own best actions ā are the best joint action (QTRAN)."""

    condition: Literal["base", "alt"] = "base"
    """What holds the sum to Q beside their being equal at ā. `base`: nowhere is it less. `alt`:
    whatever the others do, it is equal for one of an agent's actions and less for none."""
    opt_coef: NonNegative = 1.0
    """Weight of their squared difference at ā."""
    nopt_coef: NonNegative = 1.0
    """Weight of the squared violation of the condition."""
    joint_hidden: Count = 64
    """Width of the hidden layers of Q(s, a) and V(s), and of an agent's part in Q."""


class MAICMessages(Config, tag="maic", frozen=True):
    """Agents see each other's messages before they act: agent i models agent j by a latent zᵢⱼ,
    and moves its utilities by a message mᵢⱼ (MAIC)."""

    latent_dim: Count = 8
    """Dimensions of a latent."""
    latent_var_floor: Positive = 0.002
    """The least variance of a latent."""
    attention_dim: Count = 32
    """Dimensions in which an agent compares its teammates, to weigh its messages."""
    message_hidden: Count = 64
    """Width of the hidden layers that make latents and messages."""
    prune: Fraction = 0.25
    """Weight below which greedy agents do not send a message, in shares of 1/N."""
    latent_coef: NonNegative = 0.001
    """Weight of the divergence of latents from those that the teammate's action tells of."""
    attention_coef: NonNegative = 0.01
    """Weight of the entropy of the messages' weights, which is to fall."""


class Uniform(Config, tag="uniform", frozen=True):
    """All errors count alike."""


class Weighted(Config, tag="weighted", frozen=True):
    """Errors that the mixer may leave count less, so that the good joint actions do not pay for
    the bad; targets are those of a central, unrestricted Q̂ (WQMIX)."""

    full: Literal["optimistic", "central"] = "optimistic"
    """What counts in full. `optimistic`: steps that Q_tot underrates (OW). `central`: those whose
    joint action is the greedy one, or that are better than Q̂ says it is (CW)."""
    alpha: Fraction = 0.1
    """Weight of all others."""


class TD(Config, tag="td", frozen=True):
    """Value decomposition: Q-learning of a joint value that is mixed from the agents' own, so that
    each agent's best action is read off its own (Rashid et al., 2018)."""

    mixer: IQLMixer | VDNMixer | QMIXMixer | QPLEXMixer | QTRANMixer = VDNMixer()
    """How the agents' utilities make the joint value."""
    weighting: Uniform | Weighted = Uniform()
    """How much the error of each step counts."""
    communication: MAICMessages | None = None
    """What agents tell each other before they act; none: nothing."""

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
    """Gradient steps between two collections."""

    gamma: Fraction = 0.99
    """Discount factor γ."""
    double_q: bool = True
    """Let the network that learns, not the target, choose the actions that targets are of."""
    target: Soft | Hard = Soft(target_update_tau=0.01)
    """The network that targets bootstrap from."""

    epsilon_start: Fraction = 1.0
    """Share of random actions at the beginning."""
    epsilon_end: Fraction = 0.05
    """Their share at last, reached linearly."""
    epsilon_decay_steps: Count = 50_000
    """Environment steps until it is reached."""

    loss: Squared | Huber = Squared()
    """The error of a value."""
    normalize_rewards: bool = True
    """Standardise the rewards, by their running mean and deviation."""

    optimizer: Adam | RMSProp = Adam()
    """The optimiser of all networks."""
    lr: Positive = 5e-4
    """The learning rate."""
    max_grad_norm: Positive | None = 10.0
    """Bound on the norm of the gradient; none: unbounded."""

    actor_network: Literal["mlp", "gru"] = "gru"
    """The agents' network; `gru` puts a recurrent layer after the dense ones."""
    hidden_size: Count = 128
    """Width of every hidden layer."""
    num_layers: Count = 1
    """Dense hidden layers."""
    init: Literal["orthogonal", "torch"] = "orthogonal"
    """Initial weights: orthogonal, save for the hidden layers of mixers, or PyTorch's default."""
    layer_norm: bool = False
    """Normalise the inputs and the output of every hidden layer."""
    parameter_sharing: Literal["shared", "separate"] = "shared"
    """One set of parameters for all agents, or one for each."""
    parameter_groups: Groups = None
    """Of each agent, the number of its group, such as 0,0,1: who shares parameters with whom, where
    not with all."""
    agent_ids: bool = True
    """Tell shared networks which agent they serve."""
    last_action: bool = True
    """Tell agents what they did last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parts.check_buffer(self.buffer_size, self.num_envs)
        parts.check_groups(self.parameter_sharing, self.parameter_groups)
        if isinstance(self.weighting, Weighted):
            if not self.double_q:
                raise UserError(
                    "double_q = false: a weighted mixer's targets are of its own greedy actions"
                )
            if isinstance(self.mixer, IQLMixer):
                raise UserError("weighting = weighted: there is no joint value to weigh")
            if isinstance(self.mixer, QTRANMixer):
                raise UserError(
                    "weighting = weighted: a transformed mixer's joint value is restricted by "
                    "nothing; weigh its conditions, by opt_coef and nopt_coef"
                )

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
