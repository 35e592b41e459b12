"""Policies in one's own loop, and exported: they choose the actions of evaluations."""

from __future__ import annotations

import json
import pickle
import re
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perla
from marks import slow
from perla.algos.create import create
from perla.cli import main
from perla.errors import UserError
from perla.loops.evaluate import evaluate
from perla.methods.settings import configure
from perla.policies import export
from perla.policies.check import check
from perla.policies.policy import Policy

ENV = "lbf:Foraging-5x5-2p-1f-v2"
DOCS = Path(__file__).parent.parent / "docs"
SMALL = {"hidden_size": 16, "num_layers": 1}
RECURRENT = SMALL | {"actor_network": "gru"}


class Recorder(eqx.Module):
    """An actor that tells `hear` each observation and action of an evaluation."""

    actor: object
    hear: object = eqx.field(static=True)

    def initial_state(self, batch):
        return self.actor.initial_state(batch), jnp.zeros(batch), jnp.zeros(batch, bool)

    def __call__(self, observation, hidden_state, is_first, key=None):
        policy, after = self.actor(observation, hidden_state[0], is_first, key)
        return policy, (after, observation, is_first)

    def update_state(self, hidden_state, action):
        after, observation, is_first = hidden_state
        jax.debug.callback(self.hear, observation, is_first, action, ordered=True)
        return self.actor.update_state(after, action), jnp.zeros(is_first.shape), is_first


def actor_of(algo, env=ENV, **settings):
    """A random, not uniform, actor."""
    spec = perla.make(env).spec
    learner = create(configure(algo, "default", settings), spec).init(jax.random.key(1))
    return jax.tree.map(lambda x: 1.5 * x if x.dtype == jnp.float32 else x, learner.actor), spec


def played(actor, episodes, env=ENV):
    """The observations and greedy actions of an evaluation, step by step."""
    steps = []

    def hear(*step):
        steps.append(jax.tree.map(np.asarray, step))

    recorder = Recorder(actor, hear)
    played = jax.jit(partial(evaluate, perla.make(env)))(
        recorder, jax.random.key(0), jnp.ones(episodes, bool)
    )
    jax.block_until_ready(played)
    jax.effects_barrier()
    return steps


# --- In one's own loop --------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [SMALL, RECURRENT], ids=["mlp", "gru"])
def test_a_policy_acts_as_in_an_evaluation(settings):
    actor, spec = actor_of("ippo", **settings)
    policy = Policy(actor, spec)
    for observation, _, action in played(actor, 3):
        np.testing.assert_array_equal(policy.act(observation.obs, avail=observation.avail), action)


def test_one_environment_is_one_of_several():
    actor, spec = actor_of("ippo", **RECURRENT)
    several, one = Policy(actor, spec), Policy(actor, spec)
    for observation, _, _ in played(actor, 3):
        actions = several.act(observation.obs, avail=observation.avail)
        alone = one.act(observation.obs[1], avail=observation.avail[1])
        assert alone.shape == (2,)
        np.testing.assert_array_equal(alone, actions[1])


def test_reset_begins_episodes_where_it_is_told():
    actor, spec = actor_of("ippo", **RECURRENT)
    obs = np.random.default_rng(0).normal(size=(30, 2, spec.agents, spec.obs)).astype(np.float32)
    policy, fresh = Policy(actor, spec), Policy(actor, spec)
    kept = Policy(actor, spec)
    for step in obs[:20]:
        policy.act(step)
        kept.act(step)
    policy.reset([True, False])
    for step in obs[20:]:
        action = policy.act(step)
        assert action[0].tolist() == fresh.act(step[0]).tolist()
        assert action[1].tolist() == kept.act(step)[1].tolist()
    with pytest.raises(
        UserError, match=r"done has shape \(3,\); the last observations were of 2 env"
    ):
        policy.reset([True] * 3)
    with pytest.raises(UserError, match="observations of one environment, and the episodes so far"):
        policy.act(obs[0, 0])
    policy.reset()
    assert policy.act(obs[0, 0]).shape == (2,)


def test_samples_are_repeatable_and_available():
    actor, spec = actor_of("ippo", **SMALL)
    obs = np.zeros((500, spec.agents, spec.obs), np.float32)
    avail = np.tile(np.arange(spec.max_actions) < 3, (500, spec.agents, 1))
    one, other = (Policy(actor, spec).act(obs, avail=avail, greedy=False) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert set(np.unique(one)) == {0, 1, 2}


def test_mappings_of_agents_are_answered_with_mappings():
    actor, spec = actor_of("ippo", **SMALL)
    obs = np.random.default_rng(0).normal(size=(spec.agents, spec.obs)).astype(np.float32)
    by_name = Policy(actor, spec).act({"red": obs[0], "blue": obs[1]})
    assert list(by_name) == ["red", "blue"]
    assert list(by_name.values()) == Policy(actor, spec).act(obs).tolist()


def test_wrong_shapes_are_told_in_a_line():
    actor, spec = actor_of("ippo", **SMALL)
    policy = Policy(actor, spec)
    with pytest.raises(UserError, match=r"obs has shape \(3, 2\); expected \[agent, feature\]"):
        policy.act(np.zeros((3, 2)))
    with pytest.raises(UserError, match=r"avail has shape \(2, 2\); expected \[2, 6\]"):
        policy.act(np.zeros((2, spec.obs)), avail=np.ones((2, 2), bool))
    with pytest.raises(UserError, match="an agent has 99 numbers; expected at most"):
        policy.act({"a": np.zeros(99), "b": np.zeros(3)})


def test_a_policy_is_pickled_within_an_episode():
    actor, spec = actor_of("ippo", **RECURRENT)
    policy = Policy(actor, spec, seed=3)
    obs = np.random.default_rng(0).normal(size=(8, spec.agents, spec.obs)).astype(np.float32)
    for step in obs[:4]:
        policy.act(step, greedy=False)
    again = pickle.loads(pickle.dumps(policy))
    for step in obs[4:]:
        assert again.act(step, greedy=False).tolist() == policy.act(step, greedy=False).tolist()


# --- Exported -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[SMALL, RECURRENT], ids=["mlp", "gru"])
def evaluated(request):
    """An actor, and at least 10,000 greedy actions of an evaluation."""
    actor, spec = actor_of("ippo", parameter_groups=(0, 1), layer_norm=True, **request.param)
    return actor, spec, played(actor, 128)


def replayed(step, spec, steps, actor):
    """The actions that an exported `step` chooses at the observations of `steps`, and those that
    were chosen."""
    hidden_state = np.zeros((128, spec.agents, export.hidden_width(actor)), np.float32)
    found = []
    for observation, is_first, _ in steps:
        action, hidden_state = step((observation.obs, observation.avail, hidden_state, is_first))
        found.append(action)
    return np.stack(found), np.stack([action for *_, action in steps])


@pytest.mark.parametrize("format", ["jax", "numpy", "onnx"])
def test_an_export_chooses_the_10_000_actions_of_an_evaluation(evaluated, format):
    actor, spec, steps = evaluated
    step = export.load(export.export(actor, spec, format), format)
    found, chosen = replayed(step, spec, steps, actor)
    assert chosen.size >= 10_000
    assert len(np.unique(chosen)) > 3
    np.testing.assert_array_equal(found, chosen)


def test_the_reader_in_the_docs_chooses_them_too(evaluated, tmp_path):
    actor, spec, steps = evaluated
    (tmp_path / "policy.npz").write_bytes(export.export(actor, spec, "numpy"))
    (code,) = re.findall(
        r"```python\n(import json.*?)```", (DOCS / "policies.md").read_text(), re.S
    )
    assert len(code.splitlines()) <= 40
    names: dict = {}
    exec(code, names)
    step = names["load"](tmp_path / "policy.npz")
    found, chosen = replayed(lambda inputs: step(*inputs), spec, steps, actor)
    np.testing.assert_array_equal(found, chosen)


@pytest.mark.parametrize(
    ("algo", "env", "settings"),
    [
        ("qmix", ENV, {}),  # The last action is an input.
        ("maddpg", ENV, {"actor_network": "gru"}),
        ("happo", ENV, {}),  # Separate actors.
        ("ippo", ENV, {"num_layers": 2, "agent_ids": False}),
    ],
)
def test_every_actor_of_dense_layers_and_grus(algo, env, settings):
    actor, spec = actor_of(algo, env, hidden_size=16, **settings)
    step = export.load(export.export(actor, spec, "numpy"), "numpy")
    assert check(step, perla.make(env), actor, episodes=4) > 100


@pytest.mark.parametrize("algo", [*slow("mat"), "maic"])
def test_other_actors_are_exported_as_functions(algo):
    actor, spec = actor_of(algo)
    with pytest.raises(
        UserError, match=r"--format numpy: is for dense layers and GRUs, .* jax or o"
    ):
        export.export(actor, spec, "numpy")
    step = export.load(export.export(actor, spec, "jax"), "jax")
    assert check(step, perla.make(ENV), actor, episodes=2) > 50


def test_another_policy_is_noticed():
    actor, spec = actor_of("ippo", **SMALL)
    other = jax.tree.map(lambda x: -x if x.dtype == jnp.float32 else x, actor)
    step = export.load(export.export(other, spec, "numpy"), "numpy")
    with pytest.raises(UserError, match="the export chooses other actions than the policy"):
        check(step, perla.make(ENV), actor, episodes=4)


def test_the_command_writes_what_it_has_checked(tmp_path, capsys):
    run = perla.train(ENV, "ippo", steps=40, num_envs=2, rollout_length=5, num_evaluations=1,
                      eval_episodes=1, absolute_episodes=1, out=tmp_path / "run", quiet=True,
                      **SMALL)  # fmt: skip
    assert main(["export", str(tmp_path / "run")]) == 0
    assert re.search(r"policy.npz: the policy of seed 0; [\d,]+ actions in new episodes are",
                     capsys.readouterr().out)  # fmt: skip
    with np.load(tmp_path / "run/policy.npz") as file:
        assert json.loads(str(file["architecture"]))["agents"] == 2
    assert run.export(tmp_path / "a.npz").read_bytes()
    assert main(["export", str(tmp_path / "run"), "--format", "onxn"]) == 2
    assert "did you mean 'onnx'" in capsys.readouterr().err
