"""Parameters of tests that only `make test-all` runs, as others cover nearly as much."""

import pytest


def slow(*values):
    """The values as slow parameters."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def cases(table, *slow):
    """The cases of a table as parameters, with those that are named marked as slow."""
    assert set(slow) <= set(table)
    return [
        pytest.param(case, id=name, marks=[pytest.mark.slow] if name in slow else [])
        for name, case in table.items()
    ]
