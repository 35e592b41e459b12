"""Values: the critic's network, its estimate of a state, and the targets and advantages made of it.

`create_value` makes one from its settings (`perla.methods.values`) for an environment. It defines

    critic       the network that it needs
    estimate     the value of each state, the baseline
    prediction   the critic's output for the action taken, which is regressed on the target
    bootstrap    the value from which returns bootstrap
    head         the critic's outputs, and the advantages

A new value is one class here and one case in `create_value`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from perla.algos.normalise import Scale
from perla.config import tag
from perla.distributions import Categorical, Policy
from perla.envs.protocol import Spec
from perla.errors import UserError
from perla.marginal.aggregators import Aggregator, create_aggregator
from perla.marginal.estimators import (
    ClosedForm,
    Estimator,
    FixedEstimator,
    Form,
    create_estimator,
)
from perla.methods import values as settings
from perla.methods.aggregators import Mean
from perla.methods.estimators import Sampled
from perla.nets.critics import AnyCritic, Critic
from perla.types import Actions, Array, Float, Int, PRNGKeyArray


class MarginalSchedule(NamedTuple):
    """Schedule state of the average over the other agents' policies."""

    optimism: float | Float[Array, ""] = 1.0
    """Optimism coefficient of an annealed aggregator, 1 to 0."""
    candidate: int | Int[Array, ""] = 0
    """Index into the estimator's candidate numbers of samples."""


INITIAL = MarginalSchedule()
"""The schedule's state at the start of a run."""


class Estimate(NamedTuple):
    """A critic's estimate of each state, in the critic's own (normalised) units."""

    value: Float[Array, "*batch agent"]
    """V(·), or V̂ averaged over a₋ᵢ, or the value given the a₋ᵢ that were taken."""
    action_values: Float[Array, "*batch agent out"]
    """Q̂ᵢ(s, ·) of the agent's own actions; for state values `value` as the only output."""


class CriticShape(NamedTuple):
    """The network that a value needs."""

    sees: Literal["local", "global"]
    """Its input beside the actions: the agent's observation or the global state."""
    outputs: int = 1
    """Outputs for each agent."""
    actions: int = 0
    """Actions of each other agent that are inputs, or dimensions of them; 0: none are."""
    fusion: Literal["first", "last"] = "last"
    """The hidden layer that takes the actions as inputs."""
    rank: int = 0
    """Terms of a multilinear critic; 0: a plain network."""


# --- Heads --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StateHead:
    """One output for each agent, the value of the state."""

    def outputs(self, spec: Spec) -> int:
        """Outputs for each agent."""
        return 1

    def estimate(self, policy: Policy, v: Float[Array, "*batch agent out"]) -> Estimate:
        """The estimate that consists of these outputs."""
        return Estimate(v[..., 0], v)

    def select(
        self, v: Float[Array, "*batch agent out"], action: Actions
    ) -> Float[Array, "*batch agent"]:
        """The output that belongs to the agents' own actions."""
        return v[..., 0]

    def advantages(
        self,
        estimated: Estimate,
        action: Actions,
        returns: Float[Array, "*batch agent"],
        scale: Scale,
    ) -> Float[Array, "*batch agent"]:
        """The return less the value, in units of the rewards."""
        # Aᵢ = G − V̂ᵢ(s), where the paper's Algorithm 1 has the signs reversed
        return returns - scale.restore(estimated.value)


@dataclass(frozen=True)
class ActionHead:
    """One output for each of an agent's own actions, the action's value."""

    def outputs(self, spec: Spec) -> int:
        """Outputs for each agent."""
        return spec.max_actions

    def estimate(self, policy: Policy, q: Float[Array, "*batch agent out"]) -> Estimate:
        """The estimate that consists of these outputs."""
        assert isinstance(policy, Categorical), "one output for each of an agent's actions"
        # V̂ᵢ(s) = Σₐ πᵢ(a) Q̂ᵢ(s, a)
        return Estimate((policy.probs * q).sum(-1), q)

    def select(
        self, q: Float[Array, "*batch agent out"], action: Actions
    ) -> Float[Array, "*batch agent"]:
        """The output that belongs to the agents' own actions."""
        return chosen(q, action)

    def advantages(
        self,
        estimated: Estimate,
        action: Actions,
        returns: Float[Array, "*batch agent"],
        scale: Scale,
    ) -> Float[Array, "*batch agent"]:
        """The action's value less the policy's, in units of the rewards."""
        # Aᵢ = Q̂ᵢ(s, aᵢ) − Σₐ πᵢ(a) Q̂ᵢ(s, a)                            (paper, Algorithm 1)
        gain = chosen(estimated.action_values, action) - estimated.value
        return gain * scale.deviation


Head = StateHead | ActionHead


def chosen(
    q: Float[Array, "*batch agent action"], action: Int[Array, "*batch agent"]
) -> Float[Array, "*batch agent"]:
    """q at the agents' own actions."""
    return jnp.where(jax.nn.one_hot(action, q.shape[-1], dtype=bool), q, 0.0).sum(-1)


# --- Values -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StateValue:
    """V(τᵢ) or V(s): the critic sees no actions (IPPO, MAPPO)."""

    critic: CriticShape
    head: ClassVar[StateHead] = StateHead()
    estimator: ClassVar[None] = None

    def estimate(
        self,
        critic: AnyCritic,
        context: Float[Array, "*batch agent width"],
        policy: Policy,
        key: PRNGKeyArray,
        schedule: MarginalSchedule = INITIAL,
        action: Actions | None = None,
    ) -> Estimate:
        """The value of each state."""
        assert isinstance(critic, Critic)
        return self.head.estimate(policy, critic.without_actions(context))

    def prediction(
        self,
        critic: AnyCritic,
        context: Float[Array, "*batch agent width"],
        action: Actions,
        estimated: Estimate,
    ) -> Float[Array, "*batch agent"]:
        """The prediction to regress on the target: the value of the state."""
        return self.head.select(estimated.action_values, action)

    def bootstrap(self, estimated: Estimate, action: Actions) -> Float[Array, "*batch agent"]:
        """The value from which returns bootstrap."""
        return estimated.value


@dataclass(frozen=True)
class CounterfactualValue:
    """Q(s, ·, a₋ᵢ) at the others' actions that were taken (COMA; Foerster et al., 2018)."""

    critic: CriticShape
    head: ClassVar[ActionHead] = ActionHead()
    estimator: ClassVar[None] = None

    def estimate(
        self,
        critic: AnyCritic,
        context: Float[Array, "*batch agent width"],
        policy: Policy,
        key: PRNGKeyArray,
        schedule: MarginalSchedule = INITIAL,
        action: Actions | None = None,
    ) -> Estimate:
        """The counterfactual baseline of each state, where the others' actions are `action`'s."""
        assert action is not None, "the counterfactual baseline depends on the actions taken"
        policy = jax.lax.stop_gradient(policy)
        # b(s, a₋ᵢ) = Σₐ πᵢ(a) Q(s, a, a₋ᵢ)                                 (Foerster et al., 2018)
        return self.head.estimate(policy, critic.joint(context, action))

    def prediction(
        self,
        critic: AnyCritic,
        context: Float[Array, "*batch agent width"],
        action: Actions,
        estimated: Estimate,
    ) -> Float[Array, "*batch agent"]:
        """The prediction to regress on the target: Q(s, a) of the joint action taken."""
        return self.head.select(estimated.action_values, action)

    def bootstrap(self, estimated: Estimate, action: Actions) -> Float[Array, "*batch agent"]:
        """The value from which returns bootstrap: Q(s, a) of the joint action taken there."""
        return chosen(estimated.action_values, action)


@dataclass(frozen=True)
class EmbeddedValue:
    """V(·, a₋ᵢ) or Q(·, aᵢ, a₋ᵢ) averaged over the others' policies (PERLA)."""

    critic: CriticShape
    head: Head
    estimator: Estimator
    aggregator: Aggregator
    regress: Literal["joint", "marginal"]
    memory: float
    """Largest size of the joint actions that are held at once, in MiB."""

    def estimate(
        self,
        critic: AnyCritic,
        context: Float[Array, "*batch agent width"],
        policy: Policy,
        key: PRNGKeyArray,
        schedule: MarginalSchedule = INITIAL,
        action: Actions | None = None,
    ) -> Estimate:
        """The value of each state, averaged over the others' policies."""
        policy, critic = jax.lax.stop_gradient(policy), critic.gather_per_agent()

        def aggregated(
            estimator: FixedEstimator, key: PRNGKeyArray
        ) -> Float[Array, "*batch agent out"]:
            if not self.aggregator.linear:
                draws = estimator.draw(policy, key)
                return self.aggregator(partial(critic.joint, context), draws, schedule.optimism)
            # Q̂ᵢ(s, aᵢ) = Σⱼ wᵢⱼ Qᵢ(s, aᵢ, a₋ᵢ⁽ʲ⁾): the outputs are linear in the last hidden
            # layer, so its average needs the output layer only once.               (paper, Eq. 2)
            hidden = estimator.expectation(
                partial(critic.last_hidden, context),
                policy,
                key,
                closed_form=partial(critic.expected, context),
                memory=self.memory,
            )
            return critic.output_head(hidden)

        q = self.estimator.choose(aggregated, schedule.candidate, key)
        return self.head.estimate(policy, q)

    def prediction(
        self,
        critic: AnyCritic,
        context: Float[Array, "*batch agent width"],
        action: Actions,
        estimated: Estimate,
    ) -> Float[Array, "*batch agent"]:
        """The prediction to regress on the target: of the joint action taken, or its marginal."""
        q = estimated.action_values
        if self.regress == "joint":
            q = critic.joint(context, action)
        return self.head.select(q, action)

    def bootstrap(self, estimated: Estimate, action: Actions) -> Float[Array, "*batch agent"]:
        """The value from which returns bootstrap."""
        return estimated.value


Value = StateValue | CounterfactualValue | EmbeddedValue


# --- Creation -----------------------------------------------------------------------------------


def create_value(config: settings.Value, spec: Spec, *, layer_norm: bool = False) -> Value:
    """The value with these settings for an environment.

    Raises `UserError` where the settings do not fit each other or the environment's actions.
    """
    match config:
        case settings.Independent():
            return StateValue(CriticShape("local"))
        case settings.Centralised():
            return StateValue(CriticShape("global"))
        case settings.Counterfactual():
            if spec.continuous:
                raise UserError(
                    f"value 'counterfactual': has an output for each action of an agent, and those "
                    f"of {spec.id} are continuous; use mappo or perla-mappo"
                )
            actions = spec.max_actions
            return CounterfactualValue(CriticShape("global", actions, actions, fusion="first"))
        case settings.Embedded():
            return create_embedded(config, spec, layer_norm)


def create_embedded(config: settings.Embedded, spec: Spec, layer_norm: bool) -> EmbeddedValue:
    """The policy-embedded value with these settings for an environment."""
    if config.critic_form == "action-value" and spec.continuous:
        raise UserError(
            f"critic_form 'action-value': has an output for each action of an agent, and those of "
            f"{spec.id} are continuous; use critic_form 'state-value'"
        )
    head: Head = StateHead() if config.critic_form == "state-value" else ActionHead()
    outputs = head.outputs(spec)
    form: Form | None = None
    match config.critic_model:
        case settings.Network(action_fusion=fusion):
            if fusion == "last" and not layer_norm and config.aggregator == Mean():
                form = "gaussian"
            shape = CriticShape(config.critic_input, outputs, spec.max_actions, fusion)
        case settings.Multilinear(rank=rank):
            form = "multilinear"
            shape = CriticShape(config.critic_input, outputs, rank=rank)
    actions = None if spec.continuous else spec.max_actions
    estimator = create_estimator(config.estimator, spec.agents, actions, form=form)
    check_aggregator(config, estimator)
    return EmbeddedValue(
        shape,
        head,
        estimator,
        create_aggregator(config.aggregator),
        config.regress,
        config.memory,
    )


def check_aggregator(config: settings.Embedded, estimator: Estimator) -> None:
    """Raise `UserError` for settings of the average that would have no effect, and for an
    aggregator that learning would undo or that the estimator cannot compute."""
    match config.estimator:
        case Sampled(gradient_samples=int(through)) if config.regress == "joint":
            raise UserError(
                f"gradient_samples = {through} with regress 'joint': no gradient flows through the "
                "average; use regress 'marginal'"
            )
    if config.aggregator == Mean():
        return
    name = f"aggregator {tag(config.aggregator)!r}"
    if isinstance(estimator, ClosedForm):
        raise UserError(
            f"{name}: a closed form has only the mean; use estimator 'sampled' or 'exact'"
        )
    if config.regress != "joint":
        raise UserError(
            f"{name} with regress 'marginal': regression on returns would make the aggregate their "
            "average; use regress 'joint'"
        )
