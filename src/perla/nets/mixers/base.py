"""The interface of mixers, and the networks that they are built from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax

from perla.nets.layers import MLP, Init, Linear
from perla.nets.terms import LossTerm
from perla.types import Array, Bool, Float, Int, PRNGKeyArray

POSITIVE = 1e-10
"""Added to weights that must not be zero."""

Residual = Callable[[Float[Array, "*batch value"]], Float[Array, "*batch value"]]
"""The loss of an error, elementwise."""


class MixerInput(NamedTuple):
    """The inputs of a mixer at a joint action."""

    chosen: Float[Array, "*batch agent"]
    """Qᵢ(τᵢ, aᵢ), the utilities of the joint action."""
    best: Float[Array, "*batch agent"]
    """maxₐ Qᵢ(τᵢ, a), the utilities of the agents' best available actions."""
    action: Int[Array, "*batch agent"]
    """a, the joint action."""
    state: Float[Array, "*batch feature"]
    """s, the global state; empty where the mixer does not use it."""
    hidden: Float[Array, "*batch agent hidden"]
    """hᵢ(τᵢ), the last hidden layer of the agents' networks."""


class MixerStep(NamedTuple):
    """The steps of a batch, as a mixer's own loss terms need them."""

    taken: MixerInput
    """At the joint actions taken."""
    greedy: MixerInput
    """At the greedy joint actions ā of the online network."""
    utilities: Float[Array, "*batch agent action"]
    """Qᵢ(τᵢ, ·) of all actions."""
    action_mask: Bool[Array, "*batch agent action"]
    """The actions that each agent may choose."""


class Mixer(eqx.Module):
    """Base of the mixers."""

    @abstractmethod
    def __call__(self, inputs: MixerInput) -> Float[Array, "*batch value"]:
        """The value of the joint action: Q_tot `[*batch, 1]`, or, without mixing, each agent's own
        value `[*batch, agent]`."""

    def losses(self, step: MixerStep, residual: Residual) -> dict[str, LossTerm]:
        """The mixer's loss terms beside the temporal-difference error, by metric name."""
        return {}


def dense(
    key: PRNGKeyArray,
    features: int,
    hidden: tuple[int, ...],
    outputs: int,
    init: Init,
    *,
    extra_inputs: int = 0,
    gain: float = 1.0,
    offset: float = 0.0,
) -> MLP:
    """A network with hidden layers of widths `hidden`. Its initial outputs are scaled by `gain` and
    centred at `offset`, except with PyTorch's initial weights.

    States are not normalised. Orthogonal hidden layers preserve their norm, and a mixer that learns
    so much faster than the utilities leaves them no gradient: hidden layers always have PyTorch's
    initial weights.
    """
    key_hidden, key_head = jax.random.split(key)
    net = MLP.create(
        key_hidden, features, extra_inputs, hidden, outputs, init="torch", gain=gain, norm=False
    )
    if init == "torch":
        return net
    *inner, last = net.layers
    rows, columns = last.weight.shape
    head = Linear.create(key_head, rows, columns, init, gain)
    return replace(net, layers=(*inner, replace(head, bias=head.bias + offset)))


def dense_stack(key: PRNGKeyArray, count: int, *args: Any, **kwargs: Any) -> MLP:
    """`count` networks, stacked."""
    return jax.vmap(lambda key: dense(key, *args, **kwargs))(jax.random.split(key, count))
