"""Memory of a computation, estimated from its trace before anything is compiled."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal, jaxprs_in_params


class Footprint(NamedTuple):
    """Bytes of a run. All but `seeds` and `at_once` are of one seed."""

    seeds: int
    """Number of seeds, each of which has a state."""
    at_once: int
    """Number of seeds that are computed at the same time."""
    learner: int
    """Its parameters, optimiser and statistics."""
    replay: int
    """Its replay buffer."""
    environments: int
    """The states of its environments."""
    training: int
    """Beside the state, during an update."""
    evaluation: int
    """Beside the state, during an evaluation."""
    absolute: int
    """Beside the state, during the absolute metric."""


LOOPS = {"scan", "while"}
"""Primitives whose body runs again and again with the same memory."""
FUSED = {
    "add", "add_any", "sub", "mul", "div", "neg", "sign", "abs", "max", "min", "pow", "integer_pow",
    "exp", "exp2", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "tanh", "logistic", "floor",
    "ceil", "round", "rem", "clamp", "select_n", "eq", "ne", "lt", "le", "gt", "ge", "and", "or",
    "xor", "not", "is_finite", "convert_element_type", "broadcast_in_dim", "reshape", "squeeze",
    "expand_dims", "iota", "stop_gradient", "copy", "shift_right_logical", "shift_left",
    "reduce_precision", "slice", "transpose", "rev", "pad", "concatenate", "random_bits",
    "random_unwrap", "random_wrap", "random_fold_in", "threefry2x32",
}  # fmt: skip
"""Primitives that a compiler merges into those that use their results."""

NEAR = 200
"""Operations between the making and the reading of a result that is not stored."""


def size(tree: Any) -> int:
    """Bytes of all arrays, or of all shapes, in `tree`."""
    return sum(_bytes(x) for x in jax.tree.leaves(tree))


def peak(jaxpr: Any) -> int:
    """The largest number of bytes that a computation holds beside its inputs.

    Arrays live from the operation that makes them to the last that reads them. Results that an
    elementwise operation alone reads at once are never stored. The body of a loop counts once, its
    stacked results in full; that of a computation on several devices counts once for each.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    last, readers = _uses(jaxpr)
    stored: dict[Any, int] = {}
    held = most = 0
    for index, equation in enumerate(jaxpr.eqns):
        inner = max((peak(sub) for sub in jaxprs_in_params(equation.params)), default=0)
        if equation.primitive.name == "shard_map":  # Its body is the share of one device.
            inner *= equation.params["mesh"].size
        for var in equation.outvars:
            fused = equation.primitive.name in FUSED and _is_passing(var, readers, index)
            stored[var] = 0 if fused else _bytes(var.aval)
            held += stored[var]
        if equation.primitive.name in LOOPS:
            most = max(most, held + inner)
        else:  # The results of a call are among those of its body.
            most = max(most, held + max(0, inner - sum(stored[v] for v in equation.outvars)))
        for var in {v for v in (*equation.invars, *equation.outvars) if not isinstance(v, Literal)}:
            if last.get(var, index) <= index:
                held -= stored.pop(var, 0)
    return most


def _uses(jaxpr: Any) -> tuple[dict[Any, int], dict[Any, list[tuple[int, bool]]]]:
    """For each variable the index of the last operation that reads it, and all that read it, with
    whether they are elementwise. The results of the computation are read after its end."""
    last: dict[Any, int] = {}
    readers: dict[Any, list[tuple[int, bool]]] = {}
    for index, equation in enumerate(jaxpr.eqns):
        for var in equation.invars:
            if not isinstance(var, Literal):
                last[var] = index
                fused = equation.primitive.name in FUSED or equation.primitive.name[:7] == "reduce_"
                readers.setdefault(var, []).append((index, fused))
    for var in jaxpr.outvars:
        if not isinstance(var, Literal):
            last[var] = len(jaxpr.eqns)
            readers.setdefault(var, []).append((len(jaxpr.eqns), False))
    return last, readers


def _is_passing(var: Any, readers: dict[Any, list[tuple[int, bool]]], index: int) -> bool:
    """True if elementwise operations alone read `var`, soon after it is made."""
    return all(fused and reader - index < NEAR for reader, fused in readers.get(var, []))


def _bytes(x: Any) -> int:
    """Bytes of an array or of a shape; a random key has two words."""
    if not hasattr(x, "shape"):
        return 0
    try:
        item = np.dtype(x.dtype).itemsize
    except TypeError:
        item = 8
    return int(np.prod(x.shape, dtype=np.int64)) * item if x.shape else item
