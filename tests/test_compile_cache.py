"""Entries of the compile cache are whole, and damaged ones go."""

import errno
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

import perla
from perla import files
from perla.loops.anakin import Trainer
from perla.methods.recipes import make
from perla.runs.compile_cache import ABANDONED_SECONDS, CompileCache


@pytest.fixture
def cache(tmp_path):
    return CompileCache(str(tmp_path / "cache"))


def entries(cache):
    return sorted(cache._path.iterdir())


@pytest.mark.parametrize("value", [b"", b"a program", bytes(range(256)) * 1000])
def test_what_is_put_is_got(cache, value):
    assert cache.get("key") is None
    cache.put("key", value)
    assert cache.get("key") == value
    assert len(entries(cache)) == 1


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:10], lambda data: data[:-1], lambda data: data + b"x",
     lambda data: bytes([data[0] ^ 1]) + data[1:]],
    ids=["empty", "cut", "short", "long", "flipped"],
)  # fmt: skip
def test_a_damaged_entry_is_removed_and_made_again(cache, damage):
    cache.put("key", b"a program")
    (entry,) = entries(cache)
    entry.write_bytes(damage(entry.read_bytes()))
    assert cache.get("key") is None
    assert not entries(cache)
    cache.put("key", b"a program")
    assert cache.get("key") == b"a program"


def test_a_full_disk_leaves_no_entry(cache, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_write", full)
    cache.put("key", b"a program")
    assert not entries(cache)


def test_what_a_killed_process_left_is_removed_in_time(cache):
    old, new = (cache._path / f".key-entry.{pid}.tmp" for pid in (1, 2))
    for path in (old, new):
        path.write_bytes(b"half a prog")
    past = time.time() - 2 * ABANDONED_SECONDS
    os.utime(old, (past, past))
    CompileCache(str(cache._path))
    assert entries(cache) == [new]


PROGRAM = """
import jax
from perla.runs import backend
backend.prepare()
print(jax.jit(lambda x: x * 3 + 1)(2.0))
"""


def test_jax_uses_it(tmp_path):
    def run():
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM],
            env=os.environ | {"PERLA_CACHE": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert (ran.stdout, ran.stderr) == ("7.0\n", "")
        return {path.name: path.read_bytes() for path in tmp_path.glob("*-entry")}

    made = run()
    assert made
    for name, data in made.items():
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    again = run()
    assert again.keys() == made.keys()
    assert all(CompileCache(str(tmp_path)).get(name.removesuffix("-entry")) for name in again)


def test_a_run_of_another_length_is_the_same_program():
    """Up to the number of its episodes per evaluation, which short runs have fewer of."""

    def program(steps):
        env = perla.make("lbf:Foraging-5x5-2p-1f-v2")
        trainer = Trainer(env, make("ippo", num_envs=2, rollout_length=2), seeds=(0,), steps=steps)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        return trainer._train.lower(trainer._state_shapes, count, count, count).as_text()

    assert program(100) == program(10**6)
