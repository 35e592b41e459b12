"""perla's environments as PettingZoo parallel environments, by PettingZoo's own test."""

from __future__ import annotations

import re
import sys

import jax
import numpy as np
import pytest

from perla.envs.bridges.to_pettingzoo import parallel
from perla.envs.registry import make_env
from perla.errors import UserError
from perla.plugins import install_command

ENVIRONMENTS = (
    "lbf:Foraging-5x5-2p-1f-coop-v2",
    "matrix:overgeneralisation-n3-a4-t5",
    "jumanji:Connector-v2",
)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Its advice on ids and infinite bounds.
@pytest.mark.parametrize("id", ENVIRONMENTS)
def test_pettingzoo_accepts_them(id):
    from pettingzoo.test import parallel_api_test

    parallel_api_test(parallel(make_env(id)), num_cycles=120)


def test_it_is_the_environment_itself():
    env = make_env("lbf:Foraging-5x5-2p-1f-coop-v2", mask=True)
    zoo = parallel(env)
    seen, info = zoo.reset(seed=3)
    key, first = jax.random.split(jax.random.key(3))
    state, observation = env.reset(first)
    step = jax.jit(env.step)
    total = 0
    while zoo.agents:
        for index, name in enumerate(zoo.possible_agents):
            np.testing.assert_array_equal(seen[name], observation.obs[index])
            np.testing.assert_array_equal(info[name]["action_mask"], observation.avail[index])
        np.testing.assert_array_equal(zoo.state(), observation.state)
        actions = {name: zoo.action_space(name).sample(info[name]["action_mask"]) for name in seen}
        key, now = jax.random.split(key)
        state, timestep = step(now, state, np.array([actions[name] for name in seen], np.int32))
        observation = timestep.final
        seen, rewards, terminated, truncated, info = zoo.step(actions)
        assert list(rewards.values()) == timestep.reward.tolist()
        assert set(terminated.values()) == {bool(timestep.terminated)}
        assert set(truncated.values()) == {bool(timestep.truncated)}
        total += 1
    assert timestep.terminated | timestep.truncated
    assert 1 <= total <= env.spec.limit
    assert zoo.render().shape[2] == 3


def test_continuous_environments_take_vectors():
    pytest.importorskip("jaxmarl")
    zoo = parallel(make_env("jaxmarl:MPE_simple_speaker_listener_v4", action_type="Continuous"))
    zoo.reset(seed=0)
    assert [zoo.action_space(name).shape for name in zoo.agents] == [(3,), (5,)]
    seen, *_ = zoo.step({name: zoo.action_space(name).sample() for name in zoo.agents})
    assert seen["agent_1"].shape == (11,)
    # What lies beyond a space is taken for the nearest in it.
    ends = []
    for far in (1.0, 7.0):
        zoo.reset(seed=0)
        far_out = {name: far * zoo.action_space(name).high for name in zoo.agents}
        ends.append(zoo.step(far_out)[0]["agent_1"])
    np.testing.assert_array_equal(*ends)


def test_what_is_not_installed_is_told_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    with pytest.raises(UserError, match=re.escape(install_command("pettingzoo"))):
        parallel(make_env("matrix:climbing"))
