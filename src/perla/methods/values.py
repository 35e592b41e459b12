"""What the critic sees: the one argument in which the methods differ."""

from __future__ import annotations

from typing import Literal

from perla.config import Config, Count, Positive
from perla.methods.aggregators import Entropic, Max, Mean, UpperQuantile
from perla.methods.estimators import Analytic, Auto, Exact, Sampled


class Independent(Config, tag="independent", frozen=True):
    """V(τᵢ): each agent's own observation (IPPO)."""


class Centralised(Config, tag="centralised", frozen=True):
    """V(s): the global state (MAPPO)."""


class Counterfactual(Config, tag="counterfactual", frozen=True):
    """Q(s, ·, a₋ᵢ) at the others' actions as they were taken, with advantage
    Q(s, aᵢ, a₋ᵢ) − Σₐ πᵢ(a) Q(s, a, a₋ᵢ) (COMA). Returns bootstrap from Q at the joint action that
    was taken; where none was, at the end of a horizon and of an episode that was cut, one is drawn
    from the policies."""


class Network(Config, tag="network", frozen=True):
    """The others' actions are inputs of the network, like any other."""

    action_fusion: Literal["first", "last"] = "last"
    """The hidden layer at which they join: at the `last`, all below is computed once a state; at
    the `first`, once for every joint action, as in a plain network of everything."""


class Multilinear(Config, tag="multilinear", frozen=True):
    """v₀(·) + Σᵣ wᵣ(·) (∏_{m≠i} (1 + ψₘᵣ(aₘ)) − 1): factors of a state's value, one for each other
    agent. Its average over the others' policies has a closed form, for any number of agents."""

    rank: Count = 32
    """Terms r of the sum."""


class Embedded(Config, tag="embedded", frozen=True):
    """V(·, a₋ᵢ) or Q(·, aᵢ, a₋ᵢ) averaged over a₋ᵢ ~ π₋ᵢ: policy-embedded training (PERLA)."""

    critic_input: Literal["local", "global"] = "local"
    """What the critic sees beside the actions: its `local` observation or the `global` state."""
    critic_form: Literal["state-value", "action-value"] = "state-value"
    """`state-value`: V(·, a₋ᵢ), as in the paper's experiments. `action-value`: Q(·, aᵢ, a₋ᵢ) with
    advantage Q̂ᵢ(s, aᵢ) − Σₐ πᵢ(a) Q̂ᵢ(s, a), as in its Algorithm 1 and its theory."""
    regress: Literal["joint", "marginal"] = "marginal"
    """What is regressed on the target: the critic at the `joint` action that was taken, or its
    `marginal` (Algorithm 1, line 7)."""
    critic_model: Network | Multilinear = Network()
    """How the others' actions enter the critic."""
    estimator: Auto | Sampled | Exact | Analytic = Auto()
    """How the average is taken."""
    aggregator: Mean | Entropic | UpperQuantile | Max = Mean()
    """What stands for the critic's values at the others' actions."""
    memory: Positive = 256.0
    """MiB that the joint actions of all states may take; the mean is taken of more of them part by
    part, other aggregators hold them all."""


Value = Independent | Centralised | Counterfactual | Embedded
