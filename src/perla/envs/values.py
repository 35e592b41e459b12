"""Numbers, masks and flags of environments, converted without a silent cast.

NumPy casts anything: a complex number to its real part, NaN to True, text to a number. These
functions refuse what cannot have been meant. Worker processes import this module, so it does not
import JAX.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float


class Fault(ValueError):
    """The environment broke its contract; the message needs no name of an exception."""


def describe_value(value: Any) -> str:
    """A few words that describe `value`, for error messages."""
    if isinstance(value, (str, int, float)) or hasattr(value, "dtype"):
        return f"{value!r}"[:60]
    name = "None" if value is None else type(value).__name__
    return name if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def to_array(name: str, value: Any, dtype: Any) -> np.ndarray:
    """`value` as an array that can be written into one of `dtype`, float32 or bool."""
    if np.dtype(dtype).kind == "b":
        return to_flags(name, value)
    array = _array(name, value)
    if array.dtype.kind not in "fiub":
        raise Fault(f"`{name}` is {_kind(value, array)}, expected real numbers")
    return array


def to_numbers(name: str, value: Any) -> Float[np.ndarray, "*axes"]:
    """`value` as float32. Raises `Fault` unless it is an array of real numbers or booleans."""
    array = to_array(name, value, np.float32)
    if array.dtype == np.float32:
        return array
    with np.errstate(over="ignore"):  # Infinities are found where all numbers are checked.
        return array.astype(np.float32)


def to_flags(name: str, value: Any) -> Bool[np.ndarray, "*axes"]:
    """`value` as booleans. Raises `Fault` unless it is an array of booleans, or of 0 and 1."""
    array = _array(name, value)
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind not in "fiu":
        raise Fault(f"`{name}` is {_kind(value, array)}, expected booleans")
    wrong = array[(array != 0) & (array != 1)]
    if wrong.size:
        raise Fault(f"`{name}` holds {wrong.flat[0]}, expected booleans, or 0 and 1")
    return array.astype(bool)


def to_flag(name: str, value: Any) -> bool:
    """`value` as one boolean. Raises `Fault` unless it is one, 0 or 1, or an array of one of them:
    objects such as dictionaries and lists have a truth value, too, which nobody means."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    flags = to_flags(name, value)
    if flags.size != 1:
        raise Fault(f"`{name}` is {flags.size} values, expected one boolean")
    return bool(flags.item())


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.asarray(value)
    except ValueError:  # Lists of unequal length.
        raise Fault(f"`{name}` is {describe_value(value)} of unequal parts") from None


def _kind(value: Any, array: np.ndarray) -> str:
    return describe_value(value) if array.dtype.kind == "O" else f"of {array.dtype}"
