"""Settings of the value-decomposition learner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from perla.config import Config, Count, Fraction, NonNegative, Open, Positive
from perla.errors import UserError
from perla.methods.offpolicy import OffPolicy
from perla.plugins import Registry, variant_check


class Mixer(Open, frozen=True):
    """Base of the mixers' settings, and their properties."""

    per_agent: ClassVar[bool] = False
    """True where every agent has its own value and there is no joint value."""
    uses_state: ClassVar[bool] = True
    """True where the joint value depends on the global state."""
    weighting_conflict: ClassVar[str | None] = None
    """The reason why a weighting of the errors (WQMIX) does not fit; none: it fits."""

    @classmethod
    def variants(cls) -> Mapping[str, type[Mixer]]:
        """The settings of all mixers, by tag."""
        return MIXERS

    def create(self, config: TD, spec: Any, key: Any) -> Any:
        """A newly initialised `perla.nets.mixers.Mixer` for an environment with this `Spec`. Mixers
        of other packages define it; perla's own are made in `perla.algos.td`."""
        raise NotImplementedError


class IQLMixer(Mixer, tag="iql", frozen=True):
    """No mixing: every agent learns its own value from its own reward (IQL)."""

    per_agent = True
    uses_state = False
    weighting_conflict = "there is no joint value to weigh"


class VDNMixer(Mixer, tag="vdn", frozen=True):
    """Q_tot = Σᵢ Qᵢ (VDN)."""

    uses_state = False


class QMIXMixer(Mixer, tag="qmix", frozen=True):
    """Q_tot = f(s, Q₁, …, Q_N), monotonic in every Qᵢ (QMIX)."""

    mixing_embed_dim: Count = 32
    """Width of the mixer's hidden layer."""
    hypernet_embed: Count = 64
    """Width of the hidden layer of the hypernetworks, which compute the mixer's weights from the
    state."""


class QPLEXMixer(Mixer, tag="qplex", frozen=True):
    """Duplex duelling: separate mixing of values and advantages, for any Q_tot whose greedy joint
    action is that of the agents' own greedy actions (QPLEX)."""

    num_kernels: Count = 10
    """Terms in the sum that is an advantage's weight λᵢ(s, a)."""
    kernel_layers: Count = 3
    """Dense layers of each term's networks, including the output layer."""
    kernel_hidden: Count = 64
    """Width of their hidden layers, and of those that weigh the utilities."""


class QTRANMixer(Mixer, tag="qtran", frozen=True):
    """An unrestricted joint value Q(s, a), to which Σᵢ Qᵢ + V(s) is regressed under constraints
    that make the agents' own greedy actions ā the greedy joint action (QTRAN)."""

    weighting_conflict = (
        "QTRAN's joint value is unrestricted; weigh its constraints, by opt_coef and nopt_coef"
    )

    condition: Literal["base", "alt"] = "base"
    """The constraint at actions other than ā. `base`: the sum is nowhere below Q. `alt`: for each
    agent, given the others' actions, it equals Q for one action and is below Q for none."""
    opt_coef: NonNegative = 1.0
    """Weight of the squared difference between sum and Q at ā."""
    nopt_coef: NonNegative = 1.0
    """Weight of the squared violation of the condition."""
    joint_hidden: Count = 64
    """Width of the hidden layers of Q(s, a) and V(s), and of an agent's encoding in Q."""


class MAICMessages(Config, tag="maic", frozen=True):
    """Messages between agents before they act: agent i models agent j by a latent zᵢⱼ and adds a
    message mᵢⱼ to its utilities (MAIC)."""

    latent_dim: Count = 8
    """Dimensions of a latent."""
    latent_var_floor: Positive = 0.002
    """Lower bound on the variance of a latent."""
    attention_dim: Count = 32
    """Dimensions of the queries and keys of the attention over teammates."""
    message_hidden: Count = 64
    """Width of the hidden layers of the latent and message networks."""
    prune: Fraction = 0.25
    """Attention weight, in units of 1/N, below which greedy agents do not send a message."""
    latent_coef: NonNegative = 0.001
    """Weight of the KL divergence of latents from those inferred with the teammate's action."""
    attention_coef: NonNegative = 0.01
    """Weight of the entropy of the attention, which is minimised."""


MIXERS: Registry[type[Mixer]] = Registry(
    "mixer",
    "perla.mixers",
    {"iql": IQLMixer, "vdn": VDNMixer, "qmix": QMIXMixer, "qplex": QPLEXMixer, "qtran": QTRANMixer},
    check=variant_check(Mixer),
)
"""The settings of all mixers, by tag."""


class Uniform(Config, tag="uniform", frozen=True):
    """Weight 1 for every error."""


class Weighted(Config, tag="weighted", frozen=True):
    """Lower weight for errors that a monotonic mixer need not fit; targets come from a central,
    unrestricted Q̂ (WQMIX)."""

    full: Literal["optimistic", "central"] = "optimistic"
    """Errors of weight 1. `optimistic`: those of steps that Q_tot underestimates (OW). `central`:
    those of greedy joint actions, and of targets above the greedy joint action's Q̂ (CW)."""
    alpha: Fraction = 0.1
    """Weight of all other errors."""


class TD(OffPolicy, tag="td", frozen=True):
    """Value decomposition: Q-learning of a joint value that a mixer computes from the agents'
    utilities, whose own greedy actions are the greedy joint action (Rashid et al., 2018)."""

    decided = ("mixer", "weighting", "communication")

    mixer: Mixer = VDNMixer()
    """The mixer: from the agents' utilities to the joint value."""
    weighting: Uniform | Weighted = Uniform()
    """Weight of the error of each step."""
    communication: MAICMessages | None = None
    """Messages between agents before they act; none: no messages."""

    double_q: bool = True
    """Double Q-learning: the online network, not the target, selects the actions of the targets."""

    epsilon_start: Fraction = 1.0
    """Initial share ε of random actions."""
    epsilon_end: Fraction = 0.05
    """Final share ε of random actions, reached linearly."""
    epsilon_decay_steps: Count = 50_000
    """Environment steps until ε is final."""

    init: Literal["orthogonal", "torch"] = "orthogonal"
    """Initial weights: orthogonal, except for the hidden layers of mixers, or PyTorch's default."""
    last_action: bool = True
    """Append the agent's last action to its observation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.weighting, Weighted):
            if not self.double_q:
                raise UserError(
                    "double_q = false: a weighted mixer's targets use its own greedy actions"
                )
            if self.mixer.weighting_conflict is not None:
                raise UserError(f"weighting = weighted: {self.mixer.weighting_conflict}")
