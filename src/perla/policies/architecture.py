"""Actors of dense layers and GRUs as a list of operations, for readers in other languages.

An operation is a name and its arrays. Parameters of agents that share them have no agent axis, and
all others one in front, so that `x W` is a product of `[…, agent, 1, in]` and `[agent, in, out]` in
either case. An agent's id is a part of the first layer's bias.

    norm    y = (x − mean) / √(variance + 10⁻⁵) · scale + shift, over the features
    dense   y = x W + b
    relu    y = max(x, 0)
    gru     the hidden state h: r, z, n from x W + b and h U, three parts of equal width each;
            r, z = σ(xᵣ + hᵣ), σ(x_z + h_z); n = tanh(xₙ + r (hₙ + c)); y = n + z (h − n)
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from perla.envs.protocol import Spec
from perla.errors import UserError
from perla.nets.actors import Actor, AnyActor, DeterministicActor, GreedyActor
from perla.nets.body import Body
from perla.nets.layers import MLP, LayerNorm

Mode = Literal["argmax", "mean", "tanh"]
"""The greedy action: the available one with the largest output; the outputs; or their tanh."""


class Operation(NamedTuple):
    """An operation, with its arrays by name."""

    name: str
    arrays: dict[str, Any]


class Architecture(NamedTuple):
    """The operations from observations to outputs, and their meaning."""

    operations: list[Operation]
    mode: Mode
    hidden: int
    """Width of the GRU's hidden state; 0 without one."""
    last_action: int
    """Width of the encoded last action, which follows the observation; 0 if it is no input."""


def describe_actor(actor: AnyActor, spec: Spec) -> Architecture:
    """The architecture of `actor`. Raises `UserError` if it has other layers."""
    mode: Mode = "argmax"
    if isinstance(actor, Actor):
        body, last_action = actor.body, 0
        if actor.log_std is not None:
            mode = "tanh" if actor.tanh_squash else "mean"
    elif isinstance(actor, (GreedyActor, DeterministicActor)):
        utilities = actor.utilities if isinstance(actor, GreedyActor) else actor.logits
        if utilities.messages is not None:
            raise _other("agents that send each other messages")
        body, last_action = utilities.body, utilities.last_action_size
        mode = "tanh" if spec.continuous else "argmax"
    else:
        raise _other(f"a {type(actor).__name__}")
    return Architecture(_of_body(body), mode, body.hidden_state_size, last_action)


def _other(what: str) -> UserError:
    return UserError(
        f"--format numpy: is for dense layers and GRUs, and this is {what}; take jax or onnx"
    )


def _of_body(body: Body) -> list[Operation]:
    """The operations of a body, with the parameters of each agent."""
    if body.net.pictures is not None:
        raise _other("a network with convolutions")
    net = body.gather(body.net)
    ids = body.id_rows if body.ids else None
    if net.torso is None:
        return _of_mlp(net.head, ids)
    operations = [*_of_mlp(net.torso.dense, ids), Operation("relu", {})]
    gru = net.torso.gru
    if gru is not None:
        operations += _norms(net.torso.norm)
        arrays = {"weight": gru.inputs.weight, "bias": gru.inputs.bias}
        arrays |= {"recurrent": gru.recurrent, "candidate_bias": gru.candidate_bias}
        operations.append(Operation("gru", arrays))
    return [*operations, *_of_mlp(net.head, None)]


def _of_mlp(mlp: MLP, ids: Any) -> list[Operation]:
    """The operations of dense layers; `ids` `[agent, width]` are added to the first bias."""
    norms: Any = mlp.norms or (None,) * len(mlp.layers)
    operations: list[Operation] = []
    for index, (layer, norm) in enumerate(zip(mlp.layers, norms, strict=True)):
        operations += [Operation("relu", {})] if index else []
        operations += _norms(norm)
        weight, bias = layer.weight, layer.bias
        if index == 0:
            weight = weight[..., : mlp.features, :]
            bias = bias if ids is None else np.asarray(bias) + np.asarray(ids)
        operations.append(Operation("dense", {"weight": weight, "bias": bias}))
    return operations


def _norms(norm: LayerNorm | None) -> list[Operation]:
    arrays = {} if norm is None else {"scale": norm.scale, "shift": norm.shift}
    return [Operation("norm", arrays)] if arrays else []
