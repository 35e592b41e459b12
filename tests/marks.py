"""Parameters of tests that only `make test-all` runs, as others cover nearly as much."""

import pytest


def slow(*values):
    """The values as slow parameters; a tuple has a value for each of several names."""
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*row, marks=pytest.mark.slow) for row in rows]


def cases(table, *slow):
    """The cases of a table as parameters, with those that are named marked as slow."""
    assert set(slow) <= set(table)
    return [
        pytest.param(case, id=name, marks=[pytest.mark.slow] if name in slow else [])
        for name, case in table.items()
    ]
