"""The examples do what they say, and plugging policy embedding in takes what it says."""

import difflib
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples" / "plug_in"


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Examples are written for JAX as it comes, where ranks are promoted."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_plugging_in_is_a_diff_of_fifteen_lines_at_most():
    before, after = ((EXAMPLES / name).read_text() for name in ("ippo.py", "ippo_perla.py"))
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0)
    changes = [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert 0 < len([line for line in changes if line[1:].strip()]) <= 15


@pytest.mark.parametrize("name", ["ippo", "ippo_perla"])
def test_both_learn(name):
    returns = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](steps=30_000)
    assert np.asarray(returns)[-10:].mean() > np.asarray(returns)[:5].mean() + 0.2


def test_coma_keeps_to_the_safe_side_of_its_threshold():
    main = runpy.run_path(str(EXAMPLES / "coma.py"))["main"]
    assert float(main(1 / 3)) == pytest.approx(0.0, abs=0.2)
    assert float(main(0.6)) == pytest.approx(8.0, abs=0.2)


def test_maddpg_finds_the_best_actions():
    module = runpy.run_path(str(EXAMPLES / "maddpg.py"))
    best = module["TARGET"] / (module["N"] + 0.1)
    np.testing.assert_allclose(module["main"](), best, atol=0.05)
