"""Settings of the value: the critic's inputs, outputs and regression target, in which the methods
differ."""

from __future__ import annotations

from typing import Literal

from perla.config import Config, Count, Positive
from perla.methods.aggregators import Entropic, Max, Mean, UpperQuantile
from perla.methods.estimators import Auto, Estimator


class Independent(Config, tag="independent", frozen=True):
    """V(τᵢ): the critic's input is each agent's own observation (IPPO)."""


class Centralised(Config, tag="centralised", frozen=True):
    """V(s): the critic's input is the global state (MAPPO)."""


class Counterfactual(Config, tag="counterfactual", frozen=True):
    """Q(s, ·, a₋ᵢ) at the others' actions that were taken, with advantage
    Q(s, aᵢ, a₋ᵢ) − Σₐ πᵢ(a) Q(s, a, a₋ᵢ) (COMA). Returns bootstrap from Q at the joint action that
    was taken, or at one drawn from the policies at the end of a rollout and of a truncated
    episode."""


class Network(Config, tag="network", frozen=True):
    """The others' actions are inputs of the critic's network."""

    action_fusion: Literal["first", "last"] = "last"
    """The hidden layer that takes them as inputs. `last`: all layers below are computed once for
    each state. `first`: all layers are computed once for each joint action."""


class Multilinear(Config, tag="multilinear", frozen=True):
    """v₀(·) + Σᵣ wᵣ(·) (∏_{m≠i} (1 + ψₘᵣ(aₘ)) − 1), with one factor for each other agent. Its
    average over the others' policies has a closed form, for any number of agents."""

    rank: Count = 32
    """Number of terms r in the sum."""


class Embedded(Config, tag="embedded", frozen=True):
    """V(·, a₋ᵢ) or Q(·, aᵢ, a₋ᵢ) averaged over a₋ᵢ ~ π₋ᵢ: policy-embedded training (PERLA)."""

    critic_input: Literal["local", "global"] = "local"
    """The critic's input beside the actions: the agent's `local` observation or the `global`
    state."""
    critic_form: Literal["state-value", "action-value"] = "state-value"
    """`state-value`: V(·, a₋ᵢ), as in the paper's experiments. `action-value`: Q(·, aᵢ, a₋ᵢ) with
    advantage Q̂ᵢ(s, aᵢ) − Σₐ πᵢ(a) Q̂ᵢ(s, a), as in the paper's Algorithm 1 and its theory."""
    regress: Literal["joint", "marginal"] = "marginal"
    """The prediction that is regressed on the target: the critic at the `joint` action that was
    taken, or its `marginal` (Algorithm 1, line 7)."""
    critic_model: Network | Multilinear = Network()
    """The critic's model of the others' actions."""
    estimator: Estimator = Auto()
    """The estimator of the average over the others' actions."""
    aggregator: Mean | Entropic | UpperQuantile | Max = Mean()
    """The statistic of the critic's values at the others' actions."""
    memory: Positive = 256.0
    """Largest size of the joint actions of all states, in MiB. The mean is taken part by part
    beyond it; other aggregators always hold all joint actions."""


Value = Independent | Centralised | Counterfactual | Embedded
