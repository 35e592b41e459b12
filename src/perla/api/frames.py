"""Data frames of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perla.envs.bridges.optional import import_optional

if TYPE_CHECKING:
    from pandas import DataFrame


def data_frame(rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """The `rows` as a data frame. Raises `UserError` if pandas is not installed."""
    pandas: Any = import_optional("pandas", extra="notebook")
    return pandas.DataFrame(list(rows))
