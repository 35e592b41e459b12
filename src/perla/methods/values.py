"""Critics of the actor-critic: the one setting in which the methods differ."""

from __future__ import annotations

from typing import Literal

from perla.config import Config, Count, Positive
from perla.methods.aggregators import Entropic, Max, Mean, UpperQuantile
from perla.methods.estimators import Analytic, Auto, Exact, Sampled


class Independent(Config, tag="independent", frozen=True):
    """V(τᵢ) of each agent's own observation (IPPO)."""


class Centralised(Config, tag="centralised", frozen=True):
    """V(s) of the global state (MAPPO)."""


class Counterfactual(Config, tag="counterfactual", frozen=True):
    """Q(s, ·, a₋ᵢ) at the others' actual actions, with advantage
    Q(s, aᵢ, a₋ᵢ) − Σₐ πᵢ(a) Q(s, a, a₋ᵢ) (COMA).

    Returns bootstrap from Q at the next joint action. At the end of a rollout and of a truncated
    episode it is sampled from the policies.
    """


class Network(Config, tag="network", frozen=True):
    """A network with the others' actions as inputs."""

    action_fusion: Literal["first", "last"] = "last"
    """Hidden layer that receives the others' actions. `last`: the layers below are computed once
    per state. `first`: all layers are computed for every joint action, as in a plain network."""


class Multilinear(Config, tag="multilinear", frozen=True):
    """v₀(·) + Σᵣ wᵣ(·) (∏_{m≠i} (1 + ψₘᵣ(aₘ)) − 1): multilinear in the others' actions.

    Its average over the others' policies has a closed form for any number of agents.
    """

    rank: Count = 32
    """Rank: the number of terms r in the sum."""


class Embedded(Config, tag="embedded", frozen=True):
    """V(·, a₋ᵢ) or Q(·, aᵢ, a₋ᵢ) averaged over a₋ᵢ ~ π₋ᵢ: policy-embedded training (PERLA)."""

    critic_input: Literal["local", "global"] = "local"
    """Input of the critic beside the others' actions: the agent's `local` observation or the
    `global` state."""
    critic_form: Literal["state-value", "action-value"] = "state-value"
    """`state-value`: V(·, a₋ᵢ), as in the paper's experiments. `action-value`: Q(·, aᵢ, a₋ᵢ) with
    advantage Q̂ᵢ(s, aᵢ) − Σₐ πᵢ(a) Q̂ᵢ(s, a), as in the paper's Algorithm 1 and its theory."""
    regress: Literal["joint", "marginal"] = "marginal"
    """Prediction that is regressed on the target: the critic at the actual `joint` action, or its
    `marginal` over the others' policies (Algorithm 1, line 7)."""
    critic_model: Network | Multilinear = Network()
    """Model of the critic: a plain network, or one with a closed-form average."""
    estimator: Auto | Sampled | Exact | Analytic = Auto()
    """Estimator of the average over the others' policies."""
    aggregator: Mean | Entropic | UpperQuantile | Max = Mean()
    """Aggregate of the critic's values over the others' actions."""
    memory: Positive = 256.0
    """Memory for the values of all joint actions, in MiB. Beyond it the mean is accumulated in
    parts; the other aggregators hold all of them."""


Value = Independent | Centralised | Counterfactual | Embedded
