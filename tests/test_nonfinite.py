"""A number that is not finite is found within an interval, named, and costs no other seed."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import perla
from marks import slow
from perla.analysis.compare import check_fair
from perla.analysis.load import load
from perla.cli import main
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.errors import UserError
from perla.loops.anakin import Trainer
from perla.methods.recipes import make
from perla.runs import checkpoint

FAULTS = (
    "none", "observation", "state", "final observation", "final state", "action mask",
    "reward", "infinity", "huge reward",
)  # fmt: skip
AT = 5
"""The step of an episode at which the fault happens, in the second of two copies, to agent 1."""
PER_UPDATE = 16
"""Two copies, eight steps each."""


class State(NamedTuple):
    time: jax.Array
    fault: jax.Array
    """The place of a fault in `FAULTS`."""


@dataclass(frozen=True)
class Faulty:
    """Two agents who earn 1 at every step, until the fault that the state holds happens."""

    fault: str = "none"
    """The fault of states that a reset draws."""

    @property
    def spec(self):
        return Spec("test:faulty", 2, 1, 1, (2, 2), 40, "individual")

    def reset(self, key):
        state = State(jnp.int32(0), jnp.int32(FAULTS.index(self.fault)))
        return state, self.see(state)

    def step(self, key, state, action):
        state = state._replace(time=state.time + 1)
        reward = jnp.ones(2)
        for name, value in (("reward", jnp.nan), ("infinity", jnp.inf), ("huge reward", 1e30)):
            reward = reward.at[1].set(jnp.where(self.due(state, name), value, reward[1]))
        final = self.see(state)
        final = final._replace(
            obs=final.obs.at[1].add(jnp.where(self.due(state, "final observation"), jnp.nan, 0)),
            state=final.state + jnp.where(self.due(state, "final state"), jnp.nan, 0),
        )
        return state, TimeStep(self.see(state), reward, jnp.bool_(False), state.time == 40, final)

    def see(self, state):
        mask = ~(self.due(state, "action mask") & (jnp.arange(2) == 1))
        return Observation(
            jnp.ones((2, 1)).at[1].add(jnp.where(self.due(state, "observation"), jnp.nan, 0)),
            jnp.ones(1) + jnp.where(self.due(state, "state"), jnp.nan, 0),
            jnp.broadcast_to(mask[:, None], (2, 2)),
        )

    def due(self, state, name):
        return (state.time == AT) & (state.fault == FAULTS.index(name))

    def render(self, state):
        return np.zeros((8, 8, 3), np.uint8)


SMALL = {"num_envs": 2, "hidden_size": 8}
ALGOS = {
    "perla-ippo": SMALL | {"rollout_length": 8, "actor_network": "mlp"},
    "qmix": SMALL
    | {"rollout_length": 8, "actor_network": "mlp", "buffer_size": 8, "batch_size": 2},
    "maddpg": SMALL
    | {"rollout_length": 8, "actor_network": "mlp", "buffer_size": 8, "batch_size": 2},
}


def trained(algo, **settings):
    """Every fault is a seed's: names and what became of them, after six updates."""
    config = make(algo, **(ALGOS[algo] | settings))
    seeds = tuple(range(len(FAULTS)))
    trainer = Trainer(Faulty(), config, seeds=seeds, steps=96, eval_episodes=2)
    population = trainer.init()
    population = [
        eqx.tree_at(lambda p: p.runner_state.state.fault, p, jnp.array([0, place], jnp.int32))
        for place, p in enumerate(population)
    ]
    population, _ = trainer.advance(population, 0)
    population, rows = trainer.advance(population, 96)
    return trainer, population, rows


@pytest.fixture(scope="module", params=["perla-ippo", *slow("qmix", "maddpg")])
def outcome(request):
    return trained(request.param)


def test_a_fault_of_the_environment_is_named_with_its_agent_and_step(outcome):
    trainer, population, _ = outcome
    found = dict(zip(FAULTS, trainer.faults(population), strict=True))
    assert found["none"] is None
    agents = ("observation", "final observation", "action mask", "reward")
    for name in (*agents, "state", "final state"):
        assert found[name].array == name
        assert found[name].agent == (1 if name in agents else None)
        # What a step leads to is seen at the next.
        seen_at = AT if name in ("observation", "state", "action mask") else AT - 1
        assert found[name].step == seen_at * 2
    assert found["infinity"].array == "reward"


def test_a_reward_too_large_for_the_learner_is_named_with_what_it_broke(outcome):
    trainer, population, _ = outcome
    fault = trainer.faults(population)[FAULTS.index("huge reward")]
    assert fault.array.startswith("the learner's ")
    assert fault.step <= 3 * PER_UPDATE
    assert "1e+30" in str(fault)


def test_a_seed_stands_still_from_its_fault_on_and_its_best_parameters_are_finite(outcome):
    _, population, _ = outcome
    steps = dict(zip(FAULTS, (int(p.steps) for p in population), strict=True))
    assert steps["none"] == 96
    assert all(steps[name] <= 3 * PER_UPDATE for name in FAULTS[1:])
    for progress in population:
        leaves = jax.tree.leaves(eqx.filter(progress.best_actor, eqx.is_inexact_array))
        assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_other_seeds_are_what_they_would_have_been(outcome):
    trainer, population, rows = outcome
    one, _ = trainer.advance(trainer.advance(trainer.init()[:1], 0)[0], 96)
    ours, theirs = (jax.tree.leaves(p.unwrap_key().learner) for p in (population[0], one[0]))
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert rows[0]["return"] == 40.0


def test_seeds_that_are_one_computation_stop_each_for_itself():
    config = make("perla-ippo", **ALGOS["perla-ippo"])
    together = Trainer(Faulty(), config, seeds=(0, 1), steps=96, eval_episodes=2, vectorise=True)
    (population,) = together.init()
    population = eqx.tree_at(
        lambda p: p.runner_state.state.fault, population, jnp.array([[0, 0], [0, 6]], jnp.int32)
    )
    after, _ = together.advance([population], 96)
    none, fault = together.faults(after)
    assert none is None
    assert fault.array == "reward"
    assert after[0].steps.tolist() == [96, 16]


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["qmix", "perla-ippo", "maddpg"])
def test_a_step_that_is_far_too_long_is_found_in_the_parameters(algo):
    trainer = Trainer(
        Faulty(), make(algo, **(ALGOS[algo] | {"lr": 1e30})), seeds=(0,), steps=96, eval_episodes=2
    )
    population, _ = trainer.advance(trainer.advance(trainer.init(), 0)[0], 96)
    (fault,) = trainer.faults(population)
    assert fault is not None
    assert fault.array.startswith(("the learner's ", "metric "))
    leaves = jax.tree.leaves(eqx.filter(population[0].best_actor, eqx.is_inexact_array))
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_a_reward_that_only_evaluations_meet_is_named_with_its_agent():
    config = make("perla-ippo", **ALGOS["perla-ippo"])
    trainer = Trainer(Faulty("reward"), config, seeds=(0,), steps=96, eval_episodes=2)
    population, _ = trainer.advance(trainer.init(), 0)
    (fault,) = trainer.faults(population)
    assert (fault.array, fault.agent, fault.step) == ("reward", 1, 0)
    assert not np.isfinite(population[0].best_return)


# --- A run, from the command line ----------------------------------------------------------------

MODULE = """
import jax, jax.numpy as jnp, numpy as np
from perla.envs.protocol import Env, Observation, Spec, TimeStep

class Rare:
    spec = Spec("rare", 1, 1, 1, (2,), 10, "common")
    def reset(self, key):
        return (jnp.int32(0), jax.random.uniform(key)), self.see()
    def step(self, key, state, action):
        time, luck = state
        # An episode in so many earns no number: which seed meets it first is their keys' to say.
        reward = jnp.where((luck < {odds}) & (time == 4), jnp.nan, 1.0)
        seen = self.see()
        return (time + 1, luck), TimeStep(
            seen, jnp.full(1, reward), jnp.bool_(False), time == 9, seen
        )
    def see(self):
        return Observation(jnp.ones((1, 1)), jnp.ones(1), jnp.ones((1, 2), bool))
    def render(self, state):
        return np.zeros((8, 8, 3), np.uint8)

def make() -> Env:
    return Rare()
"""
ARGUMENTS = [
    "ippo", "--env", "rare:make", "--steps", "400", "--num-envs", "4", "--rollout-length", "10",
    "--hidden-size", "8", "--actor-network", "mlp", "--num-evaluations", "10",
    "--eval-episodes", "1", "--absolute-episodes", "1", "--checkpoint-seconds", "0", "--quiet",
]  # fmt: skip


@pytest.fixture
def rare(tmp_path, monkeypatch):
    """The environment in the current directory, as a module that no test has imported."""
    monkeypatch.chdir(tmp_path)

    def write(odds=0.01):
        sys.modules.pop("rare", None)
        (tmp_path / "rare.py").write_text(MODULE.format(odds=odds))

    write()
    return write


def test_a_run_stops_at_the_first_seed_and_says_where_it_is_still_good(rare, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", *ARGUMENTS, "--seeds", "1,2,3,4,6", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    kept = checkpoint.newest_first(out / "checkpoints")
    assert re.fullmatch(
        rf"perla: seed 6: reward of agent 0 is not finite near step 1\d\d; the last finite "
        rf"checkpoint is {kept[0]}; --on-nonfinite drop-seed continues with the other seeds\n",
        said,
    )
    arrays = safetensors.numpy.load_file(kept[0])
    assert all(np.isfinite(x).all() for x in arrays.values() if x.dtype == np.float32)
    assert not (out / "summary.json").exists()
    lines = (out / "metrics.jsonl").read_bytes()
    assert main(["resume", str(out), "--quiet", "--trust"]) == 2
    assert capsys.readouterr().err == said
    assert (out / "metrics.jsonl").read_bytes() == lines


def test_the_other_seeds_go_on_where_that_is_asked_for(rare, tmp_path, capsys):
    out, alone = tmp_path / "run", tmp_path / "alone"
    drop = ["--on-nonfinite", "drop-seed"]
    assert main(["train", *ARGUMENTS, "--seeds", "3,6", "--out", str(out)]) == 2
    capsys.readouterr()
    # What an interruption left behind is gone on with, to the end that seed 3 has by itself.
    assert main(["resume", str(out), "--quiet", "--trust", *drop]) == 2
    assert re.match(
        r"perla: seed 6 was dropped: reward of agent 0 .* step 1\d\d", capsys.readouterr().err
    )
    assert main(["train", *ARGUMENTS, "--seeds", "3,", "--out", str(alone)]) == 0
    ours, theirs = (json.loads((x / "summary.json").read_text()) for x in (out, alone))
    assert ours["seeds"] == theirs["seeds"]
    assert [entry["seed"] for entry in ours["dropped"]] == [6]
    assert theirs["dropped"] == []
    curves = load(out)
    assert (curves.seeds, curves.dropped) == ((3,), (6,))
    layout = json.loads((out / "marl_eval.json").read_text())
    assert set(layout["rare"]["make"]["ippo"]) == {"seed_3"}
    # A finished run says it again.
    assert main(["resume", str(out), "--quiet", "--trust"]) == 2
    assert "seed 6 was dropped" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"seed 6 was dropped.*remaining seeds would favour"):
        check_fair([curves, load(alone)])


def test_no_seed_is_left(rare, tmp_path, capsys):
    rare(odds=2)
    out = str(tmp_path / "run")
    assert main(["train", *ARGUMENTS, "--on-nonfinite", "drop-seed", "--out", out]) == 2
    said = capsys.readouterr().err
    assert said == "perla: seed 0: reward of agent 0 is not finite near step 0\n"


def test_the_same_from_python(rare):
    settings = {"num_envs": 4, "rollout_length": 10, "hidden_size": 8, "actor_network": "mlp"}
    few = {"steps": 400, "num_evaluations": 10, "eval_episodes": 1, "absolute_episodes": 1}
    with pytest.raises(UserError, match="seed 6: reward of agent 0 is not finite"):
        perla.train("rare:make", "ippo", seeds=(3, 6), **few, **settings)
    result = perla.train(
        "rare:make", "ippo", seeds=(3, 6), on_nonfinite="drop-seed", **few, **settings
    )
    assert result.dropped.keys() == {6}


def test_an_unknown_answer_to_faults_is_refused(rare, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", *ARGUMENTS, "--on-nonfinite", "skip", "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        "perla: --on-nonfinite skip: expected one of stop, drop-seed\n"
    )
    assert not out.exists()
