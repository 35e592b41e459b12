"""Two hundred kills at random moments, each resumed to identical bytes: `make test-faults`.

A chain is one folder, begun and continued by one process after another, each of which receives a
signal after a random time: while it imports, compiles, trains, writes or draws. A chain that ends
early begins anew, until it has had its kills.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from faults.harness import (
    PATIENCE,
    RUNS,
    SIGNALS,
    TOKEN,
    Reference,
    environment,
    finish,
    interrupt,
    metrics,
    start,
    train_or_resume,
)
from perla.runs.compile_cache import DIGEST_BYTES
from test_resume import outcome

KILLS = 10
"""Kills of a chain."""
CHAINS = [("jax", 8), ("replay", 5), ("host", 4), ("ray", 3)]
assert KILLS * sum(count for _, count in CHAINS) == 200
PARAMETERS = [(kind, seed) for kind, count in CHAINS for seed in range(count) if kind in RUNS]


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """The uninterrupted run of a kind, made once."""
    folder, made = tmp_path_factory.mktemp("reference"), {}

    def of(kind: str) -> Reference:
        if kind not in made:
            made[kind] = Reference(kind, folder)
        return made[kind]

    return of


@pytest.mark.parametrize(("kind", "seed"), PARAMETERS)
def test_a_chain_of_kills(reference, tmp_path, kind, seed):
    chance, whole = random.Random(f"{kind} {seed}"), reference(kind)
    check = check_resumed_alike if kind == "host" else check_as_uninterrupted
    kills = runs = 0
    while kills < KILLS:
        out, killed = tmp_path / str(runs), True
        runs += 1
        while killed and kills < KILLS:
            process = start(whole.cache, *train_or_resume(kind, out), "--quiet")
            killed = interrupt(process, chance.uniform(0.0, whole.seconds), chance.choice(SIGNALS))
            kills += killed
            check(whole, out)
        finish(start(whole.cache, *train_or_resume(kind, out), "--quiet"))
        check(whole, out)
        assert (out / "summary.json").exists()
    check_cache(whole.cache)


def check_as_uninterrupted(whole: Reference, out: Path) -> None:
    """What a run has made so far is what the uninterrupted run made."""
    found = metrics(out)
    assert found == whole.outcome[0][: len(found)]
    if (out / "summary.json").exists():
        assert outcome(out) == whole.outcome


def check_resumed_alike(whole: Reference, out: Path) -> None:
    """A host run resumes in new episodes, and so not as the uninterrupted run, but always alike:
    what follows a kill is what another process makes of the same folder.

    The copy that was made after the kill before is complete, and `out` agrees with it. A new copy
    is made and completed.
    """
    copy = out.with_name(f"{out.name}-twin")
    if copy.exists():
        found, end = metrics(out), metrics(copy)
        assert found == end[: len(found)]
        if (out / "summary.json").exists():
            assert outcome(out) == outcome(copy)
    if (out / "config.json").exists():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(out, copy)
        finish(start(whole.cache, "resume", str(copy), "--quiet"))


def check_cache(cache: Path) -> None:
    """Every entry of the compile cache is whole."""
    for file in cache.glob("*-entry"):
        data = file.read_bytes()
        assert hashlib.sha256(data[:-DIGEST_BYTES]).digest() == data[-DIGEST_BYTES:], file


# --- Ray ----------------------------------------------------------------------------------------

SUITE = {
    "name": "faults",
    "grids": [{"env": "lbf:Foraging-5x5-2p-1f-v2", "algo": "ippo", "label": label,
               "settings": {"num_envs": 2, "rollout_length": 10, "hidden_size": 8, "lr": lr},
               "steps": 4000, "seeds": 1, "num_evaluations": 12, "eval_episodes": 2,
               "absolute_episodes": 4} for label, lr in (("a", 1e-3), ("b", 1e-4))],
}  # fmt: skip


def workers(token: str) -> list[int]:
    """The processes at work on the runs of a chain."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
                marked = f"{TOKEN}={token}".encode() in (entry / "environ").read_bytes()
            except OSError:
                continue
            if marked and b"perla.suites.worker" in command:
                found.append(int(entry.name))
    return sorted(found)


def suite_outcomes(out: Path) -> dict[str, tuple]:
    return {str(path.parent.relative_to(out)): outcome(path.parent)
            for path in out.rglob("cells/**/summary.json")}  # fmt: skip


@pytest.fixture(scope="session")
def suite(tmp_path_factory):
    """The file of a suite, the cache, its uninterrupted results and the seconds that it took."""
    folder = tmp_path_factory.mktemp("suite")
    file = folder / "suite.json"
    file.write_text(json.dumps(SUITE))
    cache = folder / "cache"
    for name in ("warm", "whole"):
        began = time.monotonic()
        out = str(folder / name)
        finish(start(cache, "suite", str(file), "--out", out, "--quiet", "--processes", "2"))
    return file, cache, suite_outcomes(folder / "whole"), time.monotonic() - began


@pytest.mark.parametrize("seed", range(dict(CHAINS)["ray"]))
def test_a_chain_of_kills_on_ray(suite, tmp_path, seed):
    """Kills of the program that submits to Ray, and of the processes at work."""
    file, cache, expected, seconds = suite
    chance = random.Random(f"ray {seed}")
    kills = runs = 0
    while kills < KILLS:
        out, token = tmp_path / str(runs), f"{os.getpid()}-{seed}-{runs}"
        runs += 1
        command = ["suite", str(file), "--out", str(out), "--quiet", "--executor", "ray"]
        variables = environment(cache, **{TOKEN: token})
        status = 1
        while status:
            process = start(cache, *command, env=variables)
            while process.poll() is None and kills < KILLS:
                try:
                    process.communicate(timeout=chance.uniform(0.5, seconds))
                    break
                except subprocess.TimeoutExpired:
                    pass
                victims = workers(token)
                if victims and chance.random() < 0.7:
                    os.kill(chance.choice(victims), chance.choice(SIGNALS))
                    kills += 1
                else:
                    process.send_signal(chance.choice(SIGNALS))
                    kills += 1
                    break
            _, error = process.communicate(timeout=PATIENCE)
            status = process.returncode
            assert status or not error, error
            wait_for_none(token)
        assert suite_outcomes(out) == expected


def wait_for_none(token: str) -> None:
    """Wait until no process is at work on a chain's runs: they end with the program they serve."""
    until = time.monotonic() + PATIENCE
    while workers(token):
        assert time.monotonic() < until
        time.sleep(0.1)
