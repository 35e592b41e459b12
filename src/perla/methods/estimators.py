"""Settings of the estimators: ways to average a critic over the other agents' actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from perla.config import Count, Open, Positive
from perla.errors import UserError
from perla.plugins import Registry, variant_check

LARGEST_ENUMERATION = 65_536
"""Largest number of joint actions of the others that `exact` enumerates."""
TOLERANCE = 0.1
"""The default of `Sampled.tolerance`."""
CANDIDATES = (2, 7, 23, 71, 211)
"""Numbers of samples that `num_samples = auto` chooses from: primes, each about three times the
one before."""


class Estimator(Open, frozen=True):
    """Base of the estimators' settings."""

    @classmethod
    def variants(cls) -> Mapping[str, type[Estimator]]:
        """The settings of all estimators, by tag."""
        return ESTIMATORS

    def create(self, agents: int, actions: int | None, *, closed_form: bool) -> Any:
        """The estimator, a `perla.marginal.estimators.FixedEstimator`, for `agents` with `actions`
        each (none: continuous actions) and a critic with or without a closed form. Estimators of
        other packages define it; perla's own are made in `perla.marginal.estimators`."""
        raise NotImplementedError


class Sampled(Estimator, tag="sampled", frozen=True):
    """K samples from the joint policy, weighted equally (paper, Eq. 2)."""

    num_samples: Count | Literal["auto"] = 100
    """K, the joint actions drawn at each state; `auto`: as many as the tolerance needs, chosen
    anew at every update from a few primes."""
    tolerance: Positive = TOLERANCE
    """With num_samples `auto`: the largest standard error of the average, relative to the error of
    the critic."""
    gradient_samples: Count | None = None
    """Samples through which the critic's gradient flows; none: all of them."""
    sampler: Literal["iid", "latin"] = "iid"
    """`iid`: independent draws, as in the paper. `latin`: Latin hypercube sampling (McKay, Beckman
    and Conover, 1979), in which every action of every agent occurs as often as its probability
    says, to within one; fastest where K is prime."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples == "auto":
            return
        if self.tolerance != TOLERANCE:
            raise UserError(
                f"tolerance = {self.tolerance}: belongs to num_samples auto, and num_samples is "
                f"{self.num_samples}"
            )
        if self.gradient_samples is not None and self.gradient_samples > self.num_samples:
            raise UserError(
                f"gradient_samples = {self.gradient_samples}: at most num_samples = "
                f"{self.num_samples}"
            )


FEW = Sampled(num_samples=17, sampler="latin")
"""The samples of `Auto` where no exact average is at hand."""


class Exact(Estimator, tag="exact", frozen=True):
    """Every joint action of the others, weighted by its probability (paper, Eq. 1)."""


class Analytic(Estimator, tag="analytic", frozen=True):
    """The average in closed form, for a critic that is multilinear in the others' actions."""


class Gaussian(Estimator, tag="gaussian", frozen=True):
    """Moment matching: the last hidden layer's inputs as Gaussian, with their exact mean and
    variance under the others' policies.

    It draws nothing. The average is exact for Gaussian policies, and close for all others (Wang and
    Manning, 2013). For the mean of a critic with action_fusion `last` and without layer_norm."""


class Auto(Estimator, tag="auto", frozen=True):
    """Analytic for a critic with a closed form, exact for few joint actions of the others,
    otherwise Gaussian, or 17 samples of the Latin sampler where that is not possible."""

    max_joint_actions: Count | None = None
    """Largest number of joint actions that are enumerated; none: 10 where Gaussian is possible,
    else 100."""


ESTIMATORS: Registry[type[Estimator]] = Registry(
    "estimator",
    "perla.estimators",
    {
        "auto": Auto,
        "sampled": Sampled,
        "exact": Exact,
        "analytic": Analytic,
        "gaussian": Gaussian,
    },
    check=variant_check(Estimator),
)
"""The settings of all estimators, by tag."""
