"""Floating-point operations of a computation, and the machine's peak rates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

MOVES = {"reshape", "broadcast_in_dim", "squeeze", "slice", "convert_element_type", "copy"}
"""Primitives that compute nothing; compilers merge them into others."""


class Work(NamedTuple):
    """The operations of a computation."""

    flops: float
    """Floating-point operations of its matrix products."""
    elements: float
    """Elements computed by all other operations."""

    def __add__(self, other: Any) -> Work:
        return Work(self.flops + other.flops, self.elements + other.elements)

    def times(self, count: int | float) -> Work:
        """The work of `count` repetitions."""
        return Work(self.flops * count, self.elements * count)


def work(f: Callable[..., Any], *arguments: Any) -> Work:
    """The work of `f(*arguments)`, found by tracing it.

    The body of a scan counts once for each iteration, that of a while loop once. Of several
    branches the longest counts.
    """
    return _work(jax.make_jaxpr(f)(*arguments).jaxpr)


def _work(jaxpr: Any) -> Work:
    total = Work(0.0, 0.0)
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner = [_work(getattr(sub, "jaxpr", sub)) for sub in jaxprs_in_params(equation.params)]
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            outputs = math.prod(equation.outvars[0].aval.shape)
            total += Work(2.0 * outputs * math.prod(left[axis] for axis in contracted), 0.0)
        elif name == "cond":
            total += max(inner, default=Work(0.0, 0.0))
        elif inner:
            times = equation.params.get("length", 1) if name == "scan" else 1
            total += sum(inner, Work(0.0, 0.0)).times(times)
        elif name not in MOVES:
            total += Work(0.0, max((v.aval.size for v in _touched(equation)), default=0))
    return total


def _touched(equation: Any) -> list[Any]:
    """The arrays that an operation reads or writes: of gathers and scatters, the part concerned."""
    match equation.primitive.name:
        case "gather" | "dynamic_slice":
            return list(equation.outvars)
        case "scatter" | "dynamic_update_slice":
            return list(equation.invars[1:])
        case _:
            return [*equation.invars, *equation.outvars]


def matrix_rate(rows: int = 1000, width: int = 128, products: int = 200) -> float:
    """Floating-point operations a second of chained products `[rows, width] × [width, width]`,
    the size of a hidden layer in training."""

    @jax.jit
    def chain(x, w):
        return jax.lax.fori_loop(0, products, lambda _, x: x @ w, x)

    x, w = jnp.ones((rows, width)), jnp.eye(width)
    return 2.0 * rows * width**2 * products / fastest(chain, x, w)


def element_rate(size: int = 2**17, rounds: int = 200) -> float:
    """Elements a second of `max(x + b, 0)` over arrays that stay in the processor's caches."""

    @jax.jit
    def chain(x, b):
        return jax.lax.fori_loop(0, rounds, lambda _, x: jnp.maximum(x + b, 0.0), x)

    x, b = jnp.ones(size), jnp.full(size, -0.1)
    return 2.0 * size * rounds / fastest(chain, x, b)


def fastest(f: Callable[..., Any], *arguments: Any, rounds: int = 5) -> float:
    """Seconds of the fastest of several calls, after one that compiles. The fastest is the least
    disturbed by other processes."""
    jax.block_until_ready(f(*arguments))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(f(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
