"""Benchmarks measure the right cases; no test depends on speed."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import host_envs
from perla.bench import env, marginal
from perla.cli import main
from perla.envs import registry
from perla.envs.protocol import Observation, Spec, TimeStep


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(marginal, "AGENTS", (2,))
    monkeypatch.setattr(marginal, "KS", (1, 100))
    monkeypatch.setattr(marginal, "LATIN_KS", (11,))
    monkeypatch.setattr(marginal, "STATES", 8)
    measure = marginal.measure
    monkeypatch.setattr(marginal, "measure", lambda: measure(rounds=1, agents=(2,)))


@pytest.mark.slow
def test_a_host_environment(monkeypatch):
    monkeypatch.setenv("PERLA_CORES", "2")
    monkeypatch.setattr(env, "_HOST_ROUNDS", 1)
    with registry.FAMILIES.added("tiny", host_envs):
        rows = env.measure("tiny:patience", seconds=0.01, rounds=1)
    names = ["bare", "pool", "ippo, cleanrl", "ippo, default"]
    assert [row["environment"] for row in rows] == [f"tiny:patience, {name}" for name in names]
    assert [row["num_envs"] for row in rows] == [2, 32, 16, 32]
    for row in rows:
        assert row["processes"] == 2
        assert row["time of bare"] == pytest.approx(rows[0]["steps/s"] / row["steps/s"])


class Masked:
    """An environment with one legal action of three, another at every step; it records whether
    actions are legal."""

    spec = Spec("masked", 1, 1, 1, (3,), 5, "common")

    def __init__(self):
        self.legal = []

    def see(self, time):
        avail = jnp.arange(3)[None] == time % 3
        return Observation(jnp.zeros((1, 1)), jnp.zeros(1), avail)

    def reset(self, key):
        return jnp.int32(0), self.see(jnp.int32(0))

    def step(self, key, time, action):
        jax.debug.callback(lambda fits: self.legal.append(bool(fits)), action[0] == time % 3)
        seen = self.see(time + 1)
        return time + 1, TimeStep(seen, jnp.zeros(1), jnp.bool_(False), time == 4, seen)

    def render(self, time):
        raise AssertionError("nothing is rendered")


def test_actions_of_jax_environments_are_legal():
    masked = Masked()
    assert env._run_perla(masked, 2)() == 400
    jax.effects_barrier()
    assert len(masked.legal) == 400
    assert all(masked.legal)


def test_only_environments_are_measured_by_name(capsys):
    assert main(["bench", "train", "--env", "tiny:patience"]) == 2
    assert "for `perla bench env`, not train" in capsys.readouterr().err


@pytest.mark.slow
def test_marginal(small, tmp_path, capsys):
    assert main(["bench", "marginal", "--out", str(tmp_path / "marginal.json")]) == 0
    assert "analytic" in capsys.readouterr().out
    rows = json.loads((tmp_path / "marginal.json").read_text())["rows"]
    table = {(row["estimator"], row["K"]): row for row in rows}
    assert {name for name, _ in table} == {"plain", "iid", "latin", "exact", "gaussian", "analytic"}
    assert all(row["µs/state"] > 0 and row["MiB"] > 0 for row in rows)
    for name in ("plain", "iid"):
        for k in (1, 100):  # Var Q̂ = Var Q / K (paper, Theorem 1)
            assert table[name, k]["variance"] == pytest.approx(1 / k, rel=0.35)
            assert table[name, k]["error against exact"] == pytest.approx(1 / math.sqrt(k), rel=0.2)
    assert table["latin", 11]["variance"] < 0.5 / 11
    by_name = {name: row for (name, _), row in table.items()}
    assert by_name["gaussian"]["variance"] == 0
    assert by_name["gaussian"]["error against exact"] < 0.1  # that of K = 100
    for row in (by_name["exact"], by_name["analytic"]):
        np.testing.assert_allclose([row["variance"], row["error against exact"]], 0.0, atol=1e-5)
    assert (tmp_path / "marginal.png").read_bytes().startswith(b"\x89PNG")
