"""Counting the matrix products of a computation, to know what share of the machine it uses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def matrix_flops(f: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of the matrix products in `f(*arguments)`.

    Loops are multiplied out where their length is known; the body of a loop that runs while a
    condition holds counts once.
    """
    return _flops(jax.make_jaxpr(f)(*arguments).jaxpr)


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            outputs = math.prod(equation.outvars[0].aval.shape)
            total += 2.0 * outputs * math.prod(left[axis] for axis in contracted)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        inner = [
            _flops(getattr(sub, "jaxpr", sub)) for sub in jax.core.jaxprs_in_params(equation.params)
        ]
        branches = equation.primitive.name == "cond"
        total += max(inner, default=0.0) if branches else times * sum(inner)
    return total


def matrix_rate(rows: int = 1000, width: int = 128, products: int = 200) -> float:
    """Floating-point operations a second of chained products `[rows, width] × [width, width]`,
    the size of a hidden layer in training."""

    @jax.jit
    def chain(x, w):
        return jax.lax.fori_loop(0, products, lambda _, x: x @ w, x)

    x, w = jnp.ones((rows, width)), jnp.eye(width)
    chain(x, w).block_until_ready()
    start = time.perf_counter()
    chain(x, w).block_until_ready()
    return 2.0 * rows * width**2 * products / (time.perf_counter() - start)
