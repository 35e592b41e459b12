"""Memory: the estimate before compiling, the limit of a container, and what will not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import perla
from perla import footprint, machine
from perla.cli import main
from perla.loops.anakin import Trainer
from perla.methods.recipes import make
from perla.runs import memory

MIB = 2**20
FORAGING = "lbf:Foraging-10x10-5p-3f-v2"


def peak(f, *arguments) -> int:
    return footprint.peak(jax.make_jaxpr(f)(*arguments))


def test_arrays_live_until_they_are_last_read():
    x = jnp.ones((256, 256))
    assert peak(lambda x: x @ x, x) == x.nbytes
    assert peak(lambda x: x @ x @ x @ x, x) == 2 * x.nbytes
    assert peak(lambda x: (x @ x) @ (x @ x.T), x) >= 3 * x.nbytes


def test_results_of_elementwise_operations_are_not_stored_on_their_way():
    x = jnp.ones((256, 256))
    assert peak(lambda x: jnp.tanh(jnp.exp(x) + 1.0).sum(), x) < x.nbytes
    assert peak(lambda x: jnp.exp(x) @ x, x) == 2 * x.nbytes


def test_a_loop_holds_one_body_and_all_stacked_results():
    x = jnp.ones((64, 64))

    def stacked(x):
        return jax.lax.scan(lambda c, _: (c @ x, c), x, None, 10)[1]

    assert peak(stacked, x) >= 10 * x.nbytes
    assert peak(lambda x: jax.lax.fori_loop(0, 10, lambda _, c: c @ x, x), x) <= 3 * x.nbytes


def test_the_limit_of_a_container_counts(tmp_path):
    groups = tmp_path / "cgroup"
    groups.write_text("0::/outer/inner\n")
    inner = tmp_path / "fs/outer/inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("1000\n")
    assert machine._container_limits(tmp_path / "fs", groups) == [1000]
    groups.write_text("5:cpu,memory:/one\n4:pids:/\nnonsense\n")
    old = tmp_path / "fs/memory/one"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("2000\n")
    assert machine._container_limits(tmp_path / "fs", groups) == [2000]
    assert machine._container_limits(tmp_path, tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["ippo", "--num-envs", "1000000"], "num_envs = 1000000"),
        (["ippo", "--hidden-size", "100000"], "hidden_size = 100000"),
        (["qmix", "--buffer-size", "3000000"], "buffer_size = 3000000"),
        (["ippo", "--eval-episodes", "100000000"], "eval_episodes = 100000000"),
    ],
)
def test_a_run_that_will_not_fit_is_refused_with_the_flag(
    monkeypatch, capsys, tmp_path, argv, named
):
    monkeypatch.setattr(machine, "memory", lambda: 8 * 2**30)
    out = tmp_path / "run"
    assert main(["train", *argv, "--env", FORAGING, "--steps", "1e8", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"perla: {named}")
    assert "GiB" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_absolute_episodes_without_end_are_refused_by_their_steps(capsys, tmp_path):
    out = tmp_path / "run"
    argv = ["train", "ippo", "--env", FORAGING, "--absolute-episodes", "100000000"]
    assert main([*argv, "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        "perla: absolute_episodes = 100000000: up to 5,000,000,000 steps, more than 2,147,483,647\n"
    )
    assert not out.exists()


CASES = {
    "ippo": {},
    "ippo, many": {"num_envs": 512, "rollout_length": 128},
    "mappo, wide": {"num_envs": 64, "hidden_size": 2048, "actor_network": "mlp"},
    "qmix, replay": {"buffer_size": 60_000},
    "perla-ippo, two": {"num_envs": 128, "rollout_length": 64},
    "maddpg, batch": {"hidden_size": 512, "num_envs": 64, "batch_size": 512},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_close_to_the_measured_peak(tmp_path, case):
    algo, seeds = case.split(",")[0], 2 if "two" in case else 1
    config = make(algo, **CASES[case])
    trainer = Trainer(perla.make(FORAGING), config, seeds=tuple(range(seeds)), steps=10**6)
    parts = memory.estimate(trainer.footprint(32), folder=True)
    steps = 2 * config.num_envs * config.length(trainer.env.spec.limit)
    code = (
        "import resource, perla\n"
        f"perla.train({FORAGING!r}, {algo!r}, steps={steps}, seeds={seeds}, num_evaluations=1, "
        f"absolute_episodes=32, out={str(tmp_path / 'run')!r}, **{CASES[case]!r})\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    variables = {k: v for k, v in os.environ.items() if k != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables | {"PERLA_CACHE": "off"},
        capture_output=True, text=True, check=True, cwd=Path(perla.__file__).parent.parent,
    )  # fmt: skip
    measured, estimated = int(done.stdout.split()[-1]), sum(parts.values())
    print(f"{case}: {measured / MIB:,.0f} MiB measured, {estimated / MIB:,.0f} MiB estimated")
    assert measured / 1.5 < estimated < measured * 1.5
