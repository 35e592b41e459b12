"""Every use of random numbers has a stream of its own."""

from __future__ import annotations

import ast
from pathlib import Path

import jax
import numpy as np
import pytest

import host_envs
import perla
from perla.envs import registry
from perla.loops import host
from perla.loops.anakin import Trainer
from perla.loops.evaluate import Episodes
from perla.loops.host_envs import HostEnvs
from perla.loops.seeds import join
from perla.loops.streams import Stream, number, stream_key
from perla.methods.recipes import make

ROOT = Path(perla.__file__).parent
SMALL = {"hidden_size": 4, "num_envs": 2, "rollout_length": 2, "actor_network": "mlp"}


def data(keys) -> list[tuple[int, ...]]:
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()]


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_no_stream_has_a_key_of_another_or_of_training(seed):
    root = jax.random.key(seed)
    chain = [root]
    for _ in range(5):  # a seed's key splits in three at every update
        chain.append(jax.random.split(chain[-1], 3)[0])
    keys = [key for root in chain for key in data(jax.random.split(root, 1024))]
    keys += [key for root in chain for stream in Stream for key in data(stream_key(root, stream))]
    assert len(keys) == len(set(keys)) > 6000


def test_a_small_number_folded_in_would_repeat_a_key_of_training():
    key = jax.random.key(3)
    assert data(jax.random.fold_in(key, 1)) == data(jax.random.split(key, 3)[1])


def test_keys_are_folded_in_only_where_no_other_use_of_theirs_is():
    """Each place here folds a step, an index or a half into a key that has no other use."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "fold_in"
    }
    assert found == {
        "envs/checks.py",
        "envs/wrappers.py",
        "experiments/theory/convergence.py",
        "loops/evaluate.py",
        "loops/host.py",
        "loops/record.py",
        "keys.py",
        "loops/scripted.py",
        "marginal/estimators.py",
        "policies/check.py",
        "policies/policy.py",
    }


def test_the_absolute_episodes_are_new_ones_whatever_their_number():
    env = perla.make("lbf:Foraging-5x5-2p-1f-v2")
    trainer = Trainer(env, make("ippo", **SMALL), seeds=(0,), steps=100, eval_episodes=16)
    state = trainer.init()[0]

    def played(stream, part=0):
        episodes = trainer._episodes(state.best_actor, state.key, number(stream, part))
        return np.stack([episodes.returns, episodes.lengths]).tobytes()

    assert played(Stream.EVALUATION) == played(Stream.EVALUATION)
    different = {played(Stream.EVALUATION), *(played(Stream.ABSOLUTE, i) for i in range(4))}
    assert len(different) == 5


def test_the_absolute_metric_is_of_as_many_episodes_as_asked_for():
    """Of parts with three greedy and three sampled episodes, seven of each."""

    def part(number):
        returns = np.arange(6) + 10 * number
        return Episodes(returns * 1.0, returns, returns * np.nan, np.zeros(2, bool))

    joined = join([part(0), part(1), part(2)], 3, 7)
    assert joined.lengths.tolist() == [0, 1, 2, 10, 11, 12, 20, 3, 4, 5, 13, 14, 15, 23]
    assert (joined.returns == joined.lengths).all()


def test_host_environments_are_reset_by_different_seeds(monkeypatch):
    seen: list[tuple[int, ...]] = []
    reset = HostEnvs.reset

    def record(self, keys):
        seen.extend(data(keys))
        reset(self, keys)

    monkeypatch.setattr(HostEnvs, "reset", record)
    with registry.FAMILIES.added("tiny", host_envs):
        factory = registry.env_factory("tiny:patience")
        trainer = host.Trainer(
            factory(), factory, make("ippo", **SMALL), seeds=(0, 1), steps=8, eval_episodes=2
        )
        population, _ = trainer.advance(trainer.init(), 8)
        trainer.absolute(population, 2)
        trainer.restore(trainer.export(population))
        trainer.close()
    assert len(seen) == len(set(seen)) == 4 * 2
