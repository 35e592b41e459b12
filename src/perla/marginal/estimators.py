"""Estimators of a joint-action critic's average over the other agents' current policies.

    Q̃ᵢ(s, aᵢ) = E_{a₋ᵢ ~ π₋ᵢ} [Qᵢ(s, aᵢ, a₋ᵢ)]                              (paper, Eq. 1)
    Q̂ᵢ(s, aᵢ) = 1/K Σⱼ Qᵢ(s, aᵢ, a₋ᵢ⁽ʲ⁾),   a₋ᵢ⁽ʲ⁾ ~ π₋ᵢ                    (paper, Eq. 2)

An estimator turns the policies at a state into a set of weighted joint actions. Agent i ignores its
own entry, so one set serves all agents:

    Q̂ᵢ(s, aᵢ) = Σⱼ wᵢⱼ Qᵢ(s, aᵢ, a₋ᵢ⁽ʲ⁾)

`create_estimator` makes one from its settings, for a number of agents and actions. A new estimator
is a file with its settings and a subclass of `FixedEstimator`, and one line that registers it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from perla.distributions import Categorical, Policy
from perla.errors import UserError
from perla.marginal.joint_actions import Draws, average, enumerated, latin_hypercube, zero_sum
from perla.methods.estimators import (
    CANDIDATES,
    FEW,
    LARGEST_ENUMERATION,
    Analytic,
    Auto,
    Exact,
    Gaussian,
    Sampled,
)
from perla.methods.estimators import Estimator as Settings
from perla.types import Array, Float, Int, PRNGKeyArray

ENTRY = 8
"""Bytes of one agent's entry of a joint action, with its weight."""

JointFunction = Callable[[Array], Float[Array, "*batch agent out"]]
"""A critic at some states, as a function of the joint action."""
Candidate = int | Int[Array, ""]
"""Index into the candidate estimators of `Adaptive`; all others ignore it."""


class FixedEstimator(ABC):
    """An estimator whose number of joint actions does not change during a run."""

    exact: ClassVar[bool] = False
    """True if the estimate is the expectation itself."""
    random: ClassVar[bool] = True
    """True if the estimate depends on the key."""

    @property
    @abstractmethod
    def num_joint_actions(self) -> int:
        """Joint actions at which the critic is evaluated at each state; 0 in closed form."""

    @abstractmethod
    def draw(
        self, policy: Policy, key: PRNGKeyArray, rows: Int[Array, " sample"] | None = None
    ) -> Draws:
        """Weighted joint actions for the policies at every state; `rows` selects some of them, and
        a row past their number has weight zero."""

    @abstractmethod
    def expectation(
        self,
        f: JointFunction,
        policy: Policy,
        key: PRNGKeyArray,
        *,
        closed_form: JointFunction | None = None,
        memory: float = math.inf,
    ) -> Float[Array, "*batch agent out"]:
        """The average of f over joint actions of `policy`. `closed_form` computes it from the
        policies' moments, where f has a closed form; `memory` bounds the MiB of joint actions that
        are held at once."""

    def size(self, candidate: Candidate = 0) -> Float[Array, ""]:
        """The number of joint actions of each state, as an array."""
        return self.measure(lambda estimator: estimator.num_joint_actions, candidate)

    def choose(self, compute: Callable[..., Array], candidate: Candidate, *arguments: Any) -> Array:
        """`compute(estimator, *arguments)`."""
        return compute(self, *arguments)

    def measure(
        self, quantity: Callable[[FixedEstimator], float], candidate: Candidate
    ) -> Float[Array, ""]:
        """A static quantity of the estimator."""
        return jnp.float32(quantity(self))

    def next_candidate(
        self,
        candidate: Candidate,
        noise: Float[Array, ""] | None,
        critic_error: Float[Array, ""],
    ) -> Int[Array, ""]:
        """The candidate of the next update: the same."""
        return jnp.asarray(candidate)


class JointActions(FixedEstimator):
    """An estimator that evaluates the critic at joint actions."""

    @property
    @abstractmethod
    def gradient_samples(self) -> int | None:
        """Joint actions through which gradients flow; none: all of them."""

    @abstractmethod
    def rows(self, policy: Policy, key: PRNGKeyArray, rows: Int[Array, " sample"] | None) -> Draws:
        """The joint actions at these rows, or all; a row past their number may have any weight."""

    def draw(
        self, policy: Policy, key: PRNGKeyArray, rows: Int[Array, " sample"] | None = None
    ) -> Draws:
        """Weighted joint actions, as of `FixedEstimator`."""
        draws = self.rows(policy, key, rows)
        if rows is None:
            return draws
        real = rows < self.num_joint_actions
        real = real.reshape(rows.size, *(1 for _ in draws.weights.shape[1:]))
        return draws._replace(weights=jnp.where(real, draws.weights, 0.0))

    def expectation(
        self,
        f: JointFunction,
        policy: Policy,
        key: PRNGKeyArray,
        *,
        closed_form: JointFunction | None = None,
        memory: float = math.inf,
    ) -> Float[Array, "*batch agent out"]:
        """The average of f, with gradients through `gradient_samples` of the joint actions."""
        total = self.num_joint_actions
        through = self.gradient_samples or total
        at_once = max(1, int(min(total, memory * 2**20 / (ENTRY * math.prod(policy.shape)))))
        if through == total <= at_once:
            return average(f, self.draw(policy, key))
        if through == total:
            return self.partial_sum(f, policy, key, at_once, 0, total)
        # All joint actions give the value; the first ones give the gradient, scaled to all.
        head = self.partial_sum(f, policy, key, at_once, 0, through)
        tail = self.partial_sum(f, policy, key, at_once, through, total)
        return jax.lax.stop_gradient(head + tail) + total / through * (
            head - jax.lax.stop_gradient(head)
        )

    def partial_sum(
        self,
        f: JointFunction,
        policy: Policy,
        key: PRNGKeyArray,
        at_once: int,
        first: int,
        last: int,
    ) -> Float[Array, "*batch agent out"]:
        """The weighted sum of f over rows `first` to `last`, of which `at_once` are held."""
        parts = math.ceil((last - first) / at_once)
        size = math.ceil((last - first) / parts)

        @partial(jax.checkpoint, prevent_cse=False)
        def part(start: Int[Array, ""]):
            rows = start + jnp.arange(size)
            rows = jnp.where(rows < last, rows, self.num_joint_actions)
            return average(f, self.draw(policy, key, rows))

        starts = first + size * jnp.arange(parts)
        zero = jnp.zeros(jax.eval_shape(part, starts[0]).shape)
        return jax.lax.scan(lambda sum, start: (sum + part(start), None), zero, starts)[0]


@dataclass(frozen=True)
class Enumeration(JointActions):
    """Every joint action of the others, weighted by its probability (paper, Eq. 1)."""

    agents: int
    actions: int
    exact: ClassVar[bool] = True
    random: ClassVar[bool] = False
    gradient_samples: ClassVar[None] = None

    @property
    def num_joint_actions(self) -> int:
        """|A|^(N−1)."""
        return self.actions ** (self.agents - 1)

    def rows(self, policy: Policy, key: PRNGKeyArray, rows: Int[Array, " sample"] | None) -> Draws:
        """These rows of the table of all joint actions."""
        assert isinstance(policy, Categorical)
        table = jnp.asarray(zero_sum(self.agents, self.actions))
        return enumerated(policy, table if rows is None else table.at[rows].get(mode="clip"))


@dataclass(frozen=True)
class Samples(JointActions):
    """K draws from the joint policy, weighted equally."""

    num_samples: int
    """K."""
    gradient_samples: int | None = None
    """Samples through which the critic's gradient flows; None: through all."""

    @property
    def num_joint_actions(self) -> int:
        """K."""
        return self.num_samples

    def rows(self, policy: Policy, key: PRNGKeyArray, rows: Int[Array, " sample"] | None) -> Draws:
        """The actions at the sampler's points in [0, 1), as quantiles of the policies."""
        points = self.points(key, policy.shape, rows)
        weights = jnp.full((len(points), *policy.batch), 1.0 / self.num_samples)
        return Draws(jax.vmap(policy.quantile)(points), weights)

    @abstractmethod
    def points(
        self, key: PRNGKeyArray, shape: tuple[int, ...], rows: Int[Array, " sample"] | None
    ) -> Float[Array, "sample *shape"]:
        """Random points, each uniform on [0, 1): those at these rows, or all."""


class IndependentSamples(Samples):
    """K independent draws (paper, Eq. 2)."""

    def points(
        self, key: PRNGKeyArray, shape: tuple[int, ...], rows: Int[Array, " sample"] | None
    ) -> Float[Array, "sample *shape"]:
        """Independent points; those of other rows come from another key."""
        if rows is None:
            return jax.random.uniform(key, (self.num_samples, *shape))
        return jax.random.uniform(jax.random.fold_in(key, rows[0]), (rows.size, *shape))


class LatinSamples(Samples):
    """K draws by Latin hypercube sampling."""

    def points(
        self, key: PRNGKeyArray, shape: tuple[int, ...], rows: Int[Array, " sample"] | None
    ) -> Float[Array, "sample *shape"]:
        """The points of a Latin hypercube."""
        return latin_hypercube(key, (self.num_samples, *shape), rows)


@dataclass(frozen=True)
class ClosedForm(FixedEstimator):
    """The expectation of a critic that is multilinear in the others' actions."""

    exact: ClassVar[bool] = True
    random: ClassVar[bool] = False
    num_joint_actions: ClassVar[int] = 0

    def draw(
        self, policy: Policy, key: PRNGKeyArray, rows: Int[Array, " sample"] | None = None
    ) -> Draws:
        """Refuse: there are no joint actions."""
        raise UserError("a closed form draws no joint actions")

    def expectation(
        self,
        f: JointFunction,
        policy: Policy,
        key: PRNGKeyArray,
        *,
        closed_form: JointFunction | None = None,
        memory: float = math.inf,
    ) -> Float[Array, "*batch agent out"]:
        """`closed_form` at the policies' moments."""
        assert closed_form is not None
        return closed_form(policy.moments)


class MomentMatching(ClosedForm):
    """The expectation of a critic whose last pre-activations are taken to be Gaussian."""

    exact: ClassVar[bool] = False


@dataclass(frozen=True)
class Adaptive:
    """One of a few estimators, chosen anew at every update: the smallest whose standard error is
    at most `tolerance` times the critic's error."""

    candidates: tuple[JointActions, ...]
    tolerance: float
    exact: ClassVar[bool] = False
    random: ClassVar[bool] = True

    def size(self, candidate: Candidate = 0) -> Float[Array, ""]:
        """The number of joint actions of each state."""
        return self.measure(lambda estimator: estimator.num_joint_actions, candidate)

    def choose(self, compute: Callable[..., Array], candidate: Candidate, *arguments: Any) -> Array:
        """`compute(estimator, *arguments)` for the estimator in use."""
        branches = [partial(compute, estimator) for estimator in self.candidates]
        return jax.lax.switch(candidate, branches, *arguments)

    def measure(
        self, quantity: Callable[[FixedEstimator], float], candidate: Candidate
    ) -> Float[Array, ""]:
        """A static quantity of the estimator in use."""
        quantities = [quantity(estimator) for estimator in self.candidates]
        return jnp.asarray(quantities, jnp.float32)[candidate]

    def next_candidate(
        self,
        candidate: Candidate,
        noise: Float[Array, ""] | None,
        critic_error: Float[Array, ""],
    ) -> Int[Array, ""]:
        """The candidate of the next update: the first whose variance is small enough, or the last.

        `noise` is the variance of the present estimate, which falls as one over the number of
        samples; `critic_error` is the mean squared error of the critic, in the same units.
        """
        assert noise is not None
        allowed = self.tolerance**2 * critic_error
        needed = noise * self.size(candidate) / (allowed + 1e-12)
        sizes = [estimator.num_joint_actions for estimator in self.candidates]
        index = (jnp.asarray(sizes, float) < needed).sum()
        return jnp.minimum(index, len(self.candidates) - 1)


Estimator = FixedEstimator | Adaptive
Form = Literal["multilinear", "gaussian"]
"""A critic's average over joint actions in closed form: exact, or by moment matching."""


def create_estimator(
    settings: Settings, agents: int, actions: int | None, *, form: Form | None = None
) -> Estimator:
    """The estimator with these settings, for `agents` with `actions` each (none: continuous
    actions) and a critic with or without a closed form.

    Raises `UserError` for `analytic` and `gaussian` without that form, and for `exact` where the
    others' joint actions are continuous or too many to enumerate.
    """
    match settings:
        case Auto() if form == "multilinear":
            return ClosedForm()
        case Auto(max_joint_actions=most):
            most = most or (10 if form == "gaussian" else 100)
            if actions is not None and actions ** (agents - 1) <= most:
                return Enumeration(agents, actions)
            return MomentMatching() if form == "gaussian" else create_samples(FEW)
        case Analytic() if form == "multilinear":
            return ClosedForm()
        case Gaussian() if form == "gaussian":
            return MomentMatching()
        case Gaussian():
            raise UserError(
                "estimator 'gaussian': averages a critic_model 'network' with action_fusion "
                "'last', aggregator 'mean' and no layer_norm; use estimator 'auto'"
            )
        case Analytic():
            raise UserError(
                "estimator 'analytic': this critic's average has no closed form; use critic_model "
                "'multilinear', or estimator 'sampled', 'exact' or 'auto'"
            )
        case Exact():
            return create_enumeration(agents, actions)
        case Sampled():
            return create_samples(settings)
        case _:
            return settings.create(agents, actions, closed_form=form == "multilinear")


def create_fixed_estimator(settings: Settings, agents: int, actions: int | None) -> FixedEstimator:
    """The estimator with these settings for any critic, outside a training run.

    Raises `UserError` as `create_estimator` does without a closed form, and for `auto` numbers of
    samples.
    """
    estimator = create_estimator(settings, agents, actions)
    if isinstance(estimator, Adaptive):
        raise UserError("num_samples = auto: only a training run can choose it; give a number")
    return estimator


def create_enumeration(agents: int, actions: int | None) -> Enumeration:
    """The estimator that enumerates; `UserError` where the joint actions are too many."""
    if actions is None:
        raise UserError(
            "estimator 'exact': continuous actions cannot be enumerated; use 'sampled', or "
            "critic_model 'multilinear' with 'analytic'"
        )
    enumeration = Enumeration(agents, actions)
    if enumeration.num_joint_actions > LARGEST_ENUMERATION:
        raise UserError(
            f"estimator 'exact': {agents} agents with {actions} actions have "
            f"{enumeration.num_joint_actions:,} joint actions of the others, more than "
            f"{LARGEST_ENUMERATION:,}; use 'sampled' or 'auto'"
        )
    return enumeration


def create_samples(settings: Sampled) -> JointActions | Adaptive:
    """The estimator that draws joint actions with these settings."""
    sampler = {"iid": IndependentSamples, "latin": LatinSamples}[settings.sampler]
    through = settings.gradient_samples
    if settings.num_samples != "auto":
        return sampler(settings.num_samples, through)
    candidates = tuple(sampler(k, through and min(through, k)) for k in CANDIDATES)
    return Adaptive(candidates, settings.tolerance)
