"""The examples run and learn, and policy embedding is plugged in by a small diff."""

import difflib
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples" / "plug_in"


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Examples are written for JAX as it comes, where ranks are promoted."""
    jax.config.update("jax_disable_most_optimizations", False)
    with jax.numpy_rank_promotion("allow"):
        yield
    jax.config.update("jax_disable_most_optimizations", True)


def test_plugging_in_is_a_diff_of_fifteen_lines_at_most():
    before, after = ((EXAMPLES / name).read_text() for name in ("ippo.py", "ippo_perla.py"))
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0)
    changes = [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert 0 < len([line for line in changes if line[1:].strip()]) <= 15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ippo", "ippo_perla"])
def test_both_learn(name):
    returns = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]()
    # Random actions earn less than 0.8.
    assert np.asarray(returns)[-10:].mean() > 0.88


def test_coma_keeps_to_the_safe_side_of_its_threshold():
    main = runpy.run_path(str(EXAMPLES / "coma.py"))["main"]
    assert float(main(1 / 3)) == pytest.approx(0.0, abs=0.2)
    assert float(main(0.6)) == pytest.approx(8.0, abs=0.2)


@pytest.mark.slow
def test_maddpg_finds_the_best_actions():
    module = runpy.run_path(str(EXAMPLES / "maddpg.py"))
    best = module["TARGET"] / (module["N"] + 0.1)
    np.testing.assert_allclose(module["main"](), best, atol=0.05)


@pytest.fixture
def crossing(monkeypatch):
    """The example of an environment on the host, as its processes import it."""
    monkeypatch.syspath_prepend(str(EXAMPLES.parent))
    import crossing

    yield crossing
    del sys.modules["crossing"]


def test_the_walkers_can_cross(crossing):
    world = crossing.make()
    world.reset(0)
    back, forth, aside = crossing.BACK, crossing.FORTH, crossing.ASIDE
    stay = back  # at its end, a walker that goes back stands still
    plan = [(forth, stay), (forth, stay), (aside, stay)] + [(aside, forth)] * 4
    plan += [(forth, forth)] * 2
    timesteps = [world.step(np.array(actions)) for actions in plan]
    assert [bool(t.terminated) for t in timesteps] == [False] * (len(plan) - 1) + [True]
    assert timesteps[-1].reward.tolist() == [1.0, 1.0]
    assert world.render().shape == (72, 120, 3)


@pytest.mark.slow
def test_an_environment_on_the_host_is_trained_on(crossing, monkeypatch):
    monkeypatch.setenv("PERLA_CORES", "2")
    returns = crossing.main(steps=4096)
    assert len(returns) == 5
    assert all(-0.2 <= value <= 1.0 for value in returns)
