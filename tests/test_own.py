"""A user's own environment: found by name, checked against its spec, trained on."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perla.cli import main
from perla.envs.processes.pool import first_observation
from perla.envs.protocol import HostEnv, Spec
from perla.envs.registry import make_env
from perla.errors import UserError
from perla.loops.anakin import Trainer
from perla.methods import recipes

EXAMPLES = Path(__file__).parent.parent / "examples"

MORTAL = Spec("own", 2, 3, 4, (2, 3), 5, "common", mortal=True)
SOURCE = """
import jax, jax.numpy as jnp
import numpy as np
from perla.envs.protocol import Observation, Spec, TimeStep

class MyEnv:
    spec = Spec("own", 2, 3, 4, (2, 3), 5, "common")
    obs, state, avail, alive = (2, 3), (4,), (2, 3), None
    reward, flag, number, later, final = (2,), (), jnp.float32, jnp.int32, None

    def see(self):
        return Observation(
            jnp.zeros(self.obs, self.number), jnp.zeros(self.state), jnp.ones(self.avail, bool),
            self.alive)

    def reset(self, key):
        return {"time": jnp.int32(0)}, self.see()

    def step(self, key, state, action):
        seen = self.see()
        final = seen if self.final is None else self.final
        return {"time": (state["time"] + 1).astype(self.later)}, TimeStep(
            seen, jnp.zeros(self.reward), jnp.zeros(self.flag, bool), state["time"] > 3, final)

    def render(self, state):
        return np.zeros((4, 4, 3), np.uint8)

def make(**changes):
    env = MyEnv()
    for name, value in changes.items():
        setattr(env, name, value)
    return env
"""

HOST_SOURCE = """
import numpy as np
from perla.envs.protocol import Observation, Spec, TimeStep

class MyEnv:
    spec = Spec("own", 2, 3, 4, (2, 3), 5, "common")
    obs, alive = (2, 3), None

    def see(self):
        return Observation(np.zeros(self.obs), np.zeros(4), np.ones((2, 3), bool), self.alive)

    def reset(self, seed):
        return self.see()

    def step(self, action):
        return TimeStep(self.see(), np.zeros(2), np.True_, np.False_, self.see())

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)

    def close(self):
        pass
"""
HOST_SOURCE += SOURCE[SOURCE.index("\ndef make") :]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory with modules of its own, forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    path = list(sys.path)

    def write(name: str, text: str = SOURCE) -> None:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    yield write
    assert sys.path == path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if name.startswith("ours") and (file is None or str(tmp_path) in file):
            del sys.modules[name]
    importlib.invalidate_caches()


def refused(id: str, **options) -> str:
    with pytest.raises(UserError) as told:
        make_env(id, **options)
    assert "\n" not in str(told.value)
    return str(told.value)


# --- Found --------------------------------------------------------------------------------------


def test_on_the_current_directory_in_packages_and_as_classes(here):
    here("ours_flat.py")
    here("ours_package/__init__.py", "")
    here("ours_package/env.py")
    assert make_env("ours_flat:make").spec.id == "own"
    assert make_env("ours_package.env:make").spec.agents == 2
    assert type(make_env("ours_flat:MyEnv")).__name__ == "MyEnv"


def test_options_are_the_functions_arguments(here):
    here("ours.py", SOURCE + "\ndef sized(agents: int = 2):\n    return MyEnv()\n")
    assert make_env("ours:sized", agents=2).spec.agents == 2
    assert "unexpected keyword argument 'agent'" in refused("ours:sized", agent=2)
    # A bridge's, where there is none.
    assert "unexpected keyword argument 'limit'" in refused("ours:sized", limit=2)


# --- Refused, in one line -----------------------------------------------------------------------


def test_what_cannot_be_found(here):
    here("ours_env.py")
    here("ours_package/__init__.py", "")
    here("ours_package/env.py")
    assert "did you mean 'ours_env'?" in refused("ours_evn:make")
    assert "did you mean 'ours_package.env'?" in refused("ours_package.evn:make")
    assert "'nowhere.at_all'" in refused("nowhere.at_all:make")
    assert "unknown function of ours_env 'mkae'; did you mean 'make'?" in refused("ours_env:mkae")
    assert "did you mean 'lbf'?" in refused("lfb:Foraging-8x8-2p-2f-coop-v2")
    assert "is a Spec" in refused("ours_env:MyEnv.spec") or "unknown function" in refused(
        "ours_env:MyEnv.spec"
    )
    for id in (":make", ".x:make"):
        assert "module" in refused(id)


def test_what_does_not_work(here):
    here("ours_broken.py", "x = 1\ny = missing\n")
    here("ours_needy.py", "import nowhere_to_be_found\n")
    here("ours.py", SOURCE + "\nNUMBER = 3\ndef fails(): return 1 / 0\ndef other(): return {}\n")
    said = refused("ours_broken:make")
    assert "ours_broken cannot be imported: NameError at ours_broken.py:2: name 'missing'" in said
    assert "it needs nowhere_to_be_found" in refused("ours_needy:make")
    assert "ZeroDivisionError at ours.py:" in refused("ours:fails")
    said = refused("ours:other")
    assert "returns a dict, which is no environment: it lacks spec, reset, step, render" in said
    assert "ours:NUMBER is 3; name a function" in refused("ours:NUMBER")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"obs": (2, 4)}, "reset gives obs of shape (2, 4); the spec says (2, 3) (agents × obs)"),
        ({"state": (5,)}, "reset gives state of shape (5,); the spec says (4,)"),
        ({"avail": (2, 2)}, "avail of shape (2, 2); the spec says (2, 3) (agents × actions)"),
        ({"alive": jnp.ones(2, bool)}, "reset gives alive; spec.mortal is False"),
        ({"spec": MORTAL}, "reset gives no alive; spec.mortal is True"),
        ({"spec": MORTAL, "alive": jnp.ones(2)}, "alive of float32; it should be bool"),
        ({"number": jnp.int32}, "obs of int32; it should be float32"),
        ({"reward": ()}, "step gives reward of shape (); the spec says (2,) (agents)"),
        ({"flag": (2,)}, "terminated of shape (2,); the spec says () (a scalar)"),
        ({"later": jnp.float32}, "leaf ['time'] is int32[] after reset and float32[] after step"),
        ({"final": 3}, "step gives an array as final, not an Observation"),
        ({"spec": 3}, "spec is 3, not a perla.envs.protocol.Spec"),
        ({"reset": lambda key: 3}, "reset returns an array, not (state, Observation)"),
        ({"reset": lambda: 3}, "reset fails: TypeError"),
        ({"step": lambda key, state, action: state}, "step returns a dict, not (state, TimeStep)"),
        ({"step": lambda key, state, action: 1 / 0}, "step fails: ZeroDivisionError at test_own"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_as_its_spec_says(changes, says, here):
    here("ours.py")
    assert says in refused("ours:make", **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"actions": (2,)}, "1 entries, but spec.agents = 2"),
        ({"actions": (2, 0)}, "every agent needs at least 1"),
        ({"limit": 0}, "spec.limit = 0: expected 1 or more"),
        ({"obs": 2.5}, "spec.obs = 2.5"),
        ({"reward": "shared"}, "unknown ours:make: spec.reward 'shared'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("source", [SOURCE, HOST_SOURCE], ids=["jax", "host"])
def test_specs_that_cannot_be(source, changes, says, here):
    here("ours.py", source)
    spec = make_env("ours:make").spec
    for name, value in changes.items():
        object.__setattr__(spec, name, value)  # In tests alone a Spec checks its types itself.
    assert says in refused("ours:make", spec=spec)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"obs": (2, 4)}, "`obs` has shape (2, 4), expected (2, 3)"),
        ({"alive": np.ones(2, bool)}, "own: reset gives alive; spec.mortal is False"),
        ({"spec": MORTAL}, "own: reset gives no alive; spec.mortal is True"),
        ({"reset": lambda seed: seed / 0}, "own: reset fails: ZeroDivisionError at test_own.py:"),
        ({"reset": lambda seed: 3}, "own: reset returns 3, not an Observation"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_host_environment_first_gives(changes, says, here):
    here("ours.py", HOST_SOURCE)
    with pytest.raises(UserError) as told:
        first_observation(make_env("ours:make", **changes))
    assert says in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("limit", "early", "says"),
    [
        (4, True, "an episode goes on after 4 steps, and spec.limit is 4"),
        (5, False, None),
        (6, True, None),
        (
            6,
            False,
            "an episode is truncated after 5 steps of 6, and spec.early_truncation is False",
        ),
        (None, False, None),
    ],
)
def test_episodes_end_at_their_limit_and_before_it_unless_the_spec_says_not(
    limit, early, says, here
):
    here("ours.py")
    spec = Spec("own", 2, 3, 4, (2, 3), limit, "common", early_truncation=early)
    if says is None:
        make_env("ours:make", spec=spec)
    else:
        assert says in refused("ours:make", spec=spec)


def test_the_episode_that_is_played_may_terminate(here):
    here("ours.py")
    env = make_env("ours:make")

    def step(key, state, action):
        after, timestep = env.step(key, state, action)
        return after, timestep._replace(terminated=state["time"] > 1)

    assert make_env("ours:make", step=step).spec.limit == 5


def test_a_spec_that_fails(here):
    broken = "    @property\n    def spec(self): return 1 / 0\n\n    def render"
    for source in (SOURCE, HOST_SOURCE):
        here("ours_spec.py", source.replace("    def render", broken))
        assert "ours_spec:make: spec fails: ZeroDivisionError at ours_spec" in refused(
            "ours_spec:make"
        )
        del sys.modules["ours_spec"]


def test_who_keeps_the_state_tells_environments_apart(here):
    here("ours.py", SOURCE + "\nMyEnv.close = lambda self: None\n")
    here("ours_host.py", HOST_SOURCE)
    assert not isinstance(make_env("ours:make"), HostEnv)
    assert isinstance(make_env("ours_host:make"), HostEnv)
    assert "reset gives obs of shape (2, 4)" in refused("ours:make", obs=(2, 4))
    jitted = jax.jit(make_env("ours:make").step)
    assert not isinstance(make_env("ours:make", step=jitted), HostEnv)


def test_states_hold_no_keys(here):
    here("ours.py")
    env = make_env("ours:make")

    def reset(key):
        return {"key": key}, env.see()

    def step(key, state, action):
        return state, env.step(key, {"time": jnp.int32(0)}, action)[1]

    assert "keep jax.random.key_data of it" in refused("ours:make", reset=reset, step=step)


# --- Used ---------------------------------------------------------------------------------------


def test_the_example_is_an_environment(here, monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    env = make_env("rendezvous:make", cells=4)
    assert env.spec.obs == 4
    state, _ = env.reset(jax.random.key(0))
    state = state._replace(at=jnp.array([0, 2]), time=jnp.int32(18))
    state, timestep = env.step(jax.random.key(0), state, jnp.array([2, 0]))
    assert (timestep.terminated, timestep.truncated) == (False, False)
    state, timestep = env.step(jax.random.key(0), state, jnp.array([0, 1]))
    assert (timestep.terminated, timestep.truncated) == (True, False)
    assert timestep.reward.tolist() == [1, 1]
    state, timestep = env.step(jax.random.key(0), state, jnp.array([0, 2]))
    assert (timestep.terminated, timestep.truncated) == (False, True)
    assert env.render(state).shape[2] == 3


def test_it_is_trained_on_and_resumed_from_the_command_line(here, monkeypatch, tmp_path, capsys):
    here("ours_example.py", (EXAMPLES / "rendezvous.py").read_text())
    out = tmp_path / "run"
    tiny = (
        "--num-envs",
        "4",
        "--rollout-length",
        "8",
        "--hidden-size",
        "8",
        "--num-layers",
        "1",
        "--quiet",
    )
    budget = ("--steps", "64", "--num-evaluations", "1", "--eval-episodes", "2")
    arguments = (*tiny, *budget, "--absolute-episodes", "2", "--env-option", "cells=3")
    assert main(["train", "ippo", "--env", "ours_example:make", "--out", str(out), *arguments]) == 0
    assert (out / "replay.gif").stat().st_size > 0
    assert main(["evaluate", str(out), "--episodes", "4", "--env", "ours_example:make"]) == 0
    assert "return" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("render", "says"),
    [
        ("raise NotImplementedError('no pictures')", "NotImplementedError at ours_plain.py:"),
        ("return None", "a picture has shape (); expected [height, width, 3]"),
    ],
)
def test_an_environment_that_cannot_be_drawn_finishes_its_run(
    render, says, here, monkeypatch, tmp_path, capsys
):
    here("ours_plain.py", SOURCE.replace("return np.zeros((4, 4, 3), np.uint8)", render))
    out = tmp_path / "run"
    tiny = ("--num-envs", "4", "--rollout-length", "8", "--hidden-size", "8", "--num-layers", "1")
    budget = ("--steps", "32", "--num-evaluations", "1", "--eval-episodes", "2")
    arguments = (*tiny, *budget, "--absolute-episodes", "2", "--out", str(out))
    assert main(["train", "ippo", "--env", "ours_plain:make", *arguments]) == 0
    said = capsys.readouterr()
    assert f"no replay.gif: own cannot be drawn: {says}" in said.out + said.err
    assert (out / "summary.json").exists()
    assert (out / "curves.png").exists()
    assert not (out / "replay.gif").exists()
    assert main(["render", str(out), "--trust"]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


@pytest.mark.slow
def test_agents_learn_to_meet(monkeypatch, here):
    monkeypatch.chdir(EXAMPLES)
    env = make_env("rendezvous:make")
    config = recipes.make("perla-ippo", hidden_size=32)
    trainer = Trainer(env, config, seeds=(0,), steps=60_000, eval_episodes=64)
    population, (before,) = trainer.advance(trainer.init(), 0)
    _, (after,) = trainer.advance(population, 60_000)
    assert np.isfinite(before["return"])
    assert after["return"] > 0.95
    assert after["episode_length"] < 4


def test_the_list_names_every_family(capsys):
    assert main(["list", "envs"]) == 0
    said = capsys.readouterr().out
    for name in (
        *("lbf:", "matrix:", "jaxmarl:SMAX-3s5z", "jumanji:", "pettingzoo:mpe2.simple_spread_v3"),
        *("gym:lbforaging:", "gym:rware:", "package.module:function"),
    ):
        assert name in said
