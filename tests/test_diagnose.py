"""`perla diagnose`: its estimates against enumeration, and what it prints, writes and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import host_envs
import perla
from exact_noise import Play, exact, of_congestion, of_matrix, random_game
from marks import cases, slow
from perla.algos.ppo import Algorithm
from perla.analysis.stats import Score
from perla.cli import main
from perla.envs import registry
from perla.envs.protocol import Observation
from perla.envs.wrappers import AutoReset
from perla.errors import UserError
from perla.loops.rollout import begin
from perla.methods.recipes import make
from perla.variance.branches import equal
from perla.variance.components import ESTIMATORS
from perla.variance.critic import FixedLearner
from perla.variance.diagnosis import PARTS, means, measure, percent, ratio
from perla.variance.states import events_of_earlier

LAMBDAS = (0.0, 0.9, 1.0)
SMALL = {"hidden_size": 16, "actor_network": "mlp", "num_envs": 64, "init": "torch"}


# --- Against enumeration ------------------------------------------------------------------------


def matrix(name):
    env = perla.make(f"matrix:{name}")
    return env, of_matrix(env)


def congestion(agents, others):
    env = perla.make(f"congestion:n{agents}-others{others}", resources=2, limit=3)
    return env, of_congestion(env)


def markov(seed, **sizes):
    game = random_game(seed, **sizes)
    return Play(game), game


GAMES = {
    "one step": (partial(matrix, "climbing"), None, 2**14),
    "three agents, four steps, rollouts of two": (partial(matrix, "random-n3-a2-s1-t4"), 2, 2**14),
    "congestion of three": (partial(congestion, 3, 0.5), None, 2**16),
    "markov game": (partial(markov, 0), None, 2**15),
    "markov game of three": (partial(markov, 5, agents=3, actions=2, limit=3), None, 2**16),
}
"""Each with the length of its rollouts (None: whole episodes) and the number of visits."""


def untrained(env, **settings):
    """A new learner with random policies and values, and its environments."""
    config = make("ippo", **SMALL, **settings)
    algorithm = Algorithm(config, env.spec)
    learner = algorithm.init(jax.random.key(1))
    envs = AutoReset(env, config.num_envs)
    return FixedLearner(algorithm, learner), begin(envs, learner.actor, jax.random.key(2))


def tables(fixed, game):
    """The policy `[state, agent, action]` and the critic's values `[state, agent]`."""
    states = len(game.start)
    avail = jnp.ones((states, game.agents, game.actions), bool)
    seen = Observation(jnp.asarray(game.obs, jnp.float32), jnp.eye(states), avail)
    first = fixed.actor.initial_state((states,))
    policy, _ = fixed.actor(seen, first, jnp.ones(states, bool))
    hidden_state = fixed.learner.critic.body.initial_state((states,))
    values = jax.vmap(lambda p, o, h: fixed.bootstrap(p, p.mode(), o, h)[0])
    return np.asarray(policy.probs, float), np.asarray(values(policy, seen, hidden_state), float)


def in_learners_units(fixed, game):
    rewards = fixed.learner.rewards
    scale = float(rewards.deviation)
    reward = (game.reward - float(rewards.mean)) / scale
    return replace(game, reward=reward, deviation=game.deviation / scale)


@pytest.mark.parametrize("game", cases(GAMES, "congestion of three", "markov game of three"))
def test_the_estimates_are_those_of_enumeration(game):
    """Within 10%, and of those that are tiny within 1% of the whole."""
    create, length, states = game
    env, game = create()
    fixed, runner_state = untrained(env, rollout_length=length)
    visits, components = measure(
        env, fixed, runner_state, jax.random.key(3), states=states, lambdas=LAMBDAS
    )
    found = means(visits, components, np.ones((1, len(visits.now))))
    policy, value = tables(fixed, game)
    game = in_learners_units(fixed, game)
    for i, lam in enumerate(LAMBDAS):
        expected = exact(game, policy, value, gamma=0.99, lam=lam, length=length)
        square = sum(expected[name] for name in PARTS)
        assert expected["whole"] == pytest.approx(square - expected["critic"], rel=1e-6)
        wholes = dict.fromkeys((*PARTS, "whole", "error"), square)
        wholes |= dict.fromkeys(map("noise_{}".format, ESTIMATORS), expected["noise_critic"])
        wholes["signal"] = expected["noise_critic"]
        assert set(wholes) == set(expected) == set(found)
        for name, whole in wholes.items():
            estimate = np.broadcast_to(found[name][0], len(LAMBDAS))[i]
            assert estimate == pytest.approx(expected[name], rel=0.1, abs=0.01 * whole), (lam, name)


@pytest.mark.parametrize("share", slow(0.9, 0.2))
def test_the_others_part_is_the_dial_of_a_congestion_game(share):
    """Under nearly uniform policies, as those of new networks are, and for one-step returns."""
    found = perla.diagnose(
        f"congestion:n20-others{share}", steps=1, states=2048, gamma=0.0, hidden_size=8,
        actor_network="mlp", env_options={"limit": 2}, quiet=True,
    )  # fmt: skip
    parts = {
        name: scores[found.numbers.place].point for name, scores in found.numbers.parts.items()
    }
    noise = parts["others"] + parts["environment"]
    assert parts["others"] / noise == pytest.approx(share, abs=0.03)
    assert noise + parts["critic"] == pytest.approx(1)
    assert parts["own_later"] == parts["others_later"] == 0


# --- Parts by hand ------------------------------------------------------------------------------


def test_an_event_counts_for_the_earlier_steps_of_its_episode_that_are_learnt_from():
    counted = jnp.array([True, True, False, True, True, True])
    is_first = jnp.array([False, False, False, False, True, False])
    found = events_of_earlier(counted, is_first, jnp.float32(0.5))
    # Step 3 follows steps 0 and 1, three and two steps later, and step 2, which is not counted.
    expected = [0, 1 / 4, 1 / 4 + 1 / 16, 1 / 16 + 1 / 64, 0, 1 / 4]
    np.testing.assert_allclose(found, expected)


def test_rows_are_equal_if_all_their_arrays_are():
    rows = {
        "key": jax.random.wrap_key_data(jnp.zeros((3, 2), jnp.uint32)),
        "x": jnp.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0]]),
        "none": jnp.zeros((3, 0)),
    }
    expected = [[True, True, False], [True, True, False], [False, False, True]]
    np.testing.assert_array_equal(equal(rows), expected)


def test_a_gain_is_at_least_zero_and_infinite_where_no_noise_is_left():
    before, after = np.array([[2.0, 1.0, 1.0, 1.0]]), np.array([[1.0, 2.0, 0.0, -0.1]])
    np.testing.assert_array_equal(ratio(before, after), [[1.0, 0.0, np.inf, np.inf]])


@pytest.mark.parametrize(
    ("score", "text"),
    [
        ((0.123, 0.04, 0.2), "12% [4.0, 20]"),
        ((12.5, 1.0, np.inf), "1,250% [100, ∞]"),
        ((-0.0001, -0.2, 0.0), "0.0% [-20, 0.0]"),
        ((np.nan, np.nan, np.nan), "–% [–, –]"),
    ],
)
def test_shares_are_written_in_per_cent(score, text):
    assert percent(Score(*score)) == text


def test_without_randomness_of_the_environment_its_part_is_exactly_zero():
    env, _ = GAMES["three agents, four steps, rollouts of two"][0]()
    fixed, runner_state = untrained(env, rollout_length=None)
    _, components = measure(env, fixed, runner_state, jax.random.key(0), states=64, lambdas=LAMBDAS)
    assert (components.environment == 0).all()
    assert (components.others != 0).any()


# --- The command and the function ---------------------------------------------------------------

QUICK = ("--steps", "200", "--states", "64", "--hidden-size", "8", "--actor-network", "mlp")


def test_the_command_prints_the_forecast_first_and_writes_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "found"
    argv = ["diagnose", "--env", "matrix:penalty-25-t3", *QUICK, "--lambdas", "0.5,1"]
    assert main([*argv, "--seed", "3", "--out", str(out)]) == 0
    printed, progress = capsys.readouterr()
    assert printed.startswith("With λ-returns (λ = 0.95) policy embedding can raise the policy")
    assert "gain at most" in printed
    assert "branching, states: 64" in progress
    assert (out / "diagnose.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((out / "diagnose.json").read_text())
    assert printed.startswith(facts["forecast"])
    assert facts["lambdas"] == [0.5, 0.95, 1.0]
    assert facts["config"]["hidden_size"] == 8
    for i in range(3):
        assert sum(facts["parts"][name][i][0] for name in PARTS) == pytest.approx(1)
    assert set(facts["removed"]) == set(ESTIMATORS) - {"critic"}

    settings = {"hidden_size": 8, "actor_network": "mlp"}
    again = perla.diagnose(
        "matrix:penalty-25-t3", steps=200, states=64, lambdas=(0.5, 1), seed=3, quiet=True,
        **settings,
    )  # fmt: skip
    assert again.forecast == facts["forecast"]
    assert list(again.gain) == pytest.approx(facts["gain"][1])
    assert capsys.readouterr() == ("", "")
    with pytest.raises(UserError, match="found: has a diagnosis already; name another folder"):
        again.save(out)
    table = again.table()
    assert table.loc[1.0, "others"] == pytest.approx(facts["parts"]["others"][2][0])


def test_an_environment_object_is_diagnosed():
    game = Play(random_game(1, limit=2))
    found = perla.diagnose(
        game, "perla-mappo", steps=100, states=64, quiet=True, rollout_length=4, num_envs=16,
        hidden_size=8, critic_network="gru",
    )  # fmt: skip
    assert found.numbers.visits == 64
    assert len(found.plot().axes) == 2
    assert repr(found).startswith("<Diagnosis: With λ-returns")


@pytest.mark.parametrize(
    ("algo", "env"),
    slow(("happo", "skirmish:3m"), ("perla-ippo", "lbf:Foraging-5x5-2p-1f-coop-v2")),
)
def test_methods_and_environments(algo, env):
    found = perla.diagnose(env, algo, steps=100, states=64, quiet=True, hidden_size=16)
    square = [score.point for score in found.numbers.mean_square]
    assert np.isfinite(square).all()


@pytest.mark.parametrize(
    ("algo", "settings", "says"),
    [
        ("qmix", {}, "qmix: has no λ-returns to diagnose; use ippo, mappo"),
        ("ippo", {"returns": "n-step"}, "ippo with returns 'n-step': has no λ-returns"),
        ("coma", {}, "coma: its advantage is made of its critic alone"),
        ("perla-ippo", {"critic_form": "action-value"}, "with critic_form 'state-value'"),
        ("ippo", {"states": 5}, "states 5: expected a whole number >= 64"),
        ("ippo", {"lambdas": (2,)}, r"lambdas \(2,\): expected a list, each a number"),
        ("ippo", {"lambdas": 0.9}, "lambdas 0.9: expected a list"),
        ("ippo", {"steps": "many"}, "steps many: expected a whole number"),
        ("ippo", {"hiden": 5}, "did you mean 'hidden_size'"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused_in_one_line(algo, settings, says):
    with pytest.raises(UserError, match=says):
        perla.diagnose("matrix:climbing", algo, quiet=True, **settings)


def test_an_environment_that_cannot_be_branched_is_refused():
    with (
        registry.FAMILIES.added("tiny", host_envs),
        pytest.raises(UserError, match="tiny:patience: runs in processes and cannot be set back"),
    ):
        perla.diagnose("tiny:patience", quiet=True)


def test_an_environment_without_a_limit_is_refused():
    game = Play(random_game(1))
    endless = type("Endless", (), {"spec": replace(game.spec, limit=None), "reset": game.reset,
                                   "step": game.step, "render": game.render})()  # fmt: skip
    with pytest.raises(UserError, match="has no step limit, and diagnose plays episodes to the"):
        perla.diagnose(endless, quiet=True)


def test_without_any_reward_there_is_no_forecast():
    game = random_game(1)
    nothing = Play(replace(game, reward=0 * game.reward, deviation=0 * game.deviation))
    fixed, runner_state = untrained(nothing, rollout_length=None)
    with pytest.raises(UserError, match=r"no reward in 64 rollouts of the policy.*more steps"):
        measure(nothing, fixed, runner_state, jax.random.key(0), states=64, lambdas=LAMBDAS)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--states", "5"], "--states 5: expected a whole number >= 64"),
        (["--lambdas", "0,2"], "--lambdas 0,2: expected"),
        (["--algo", "ipo"], "'ippo'"),
        (["--env", "lbf:Foraging-8x8-2p-2f-cop-v2"], "Foraging-8x8-2p-2f-cop-v2"),
        (["--hiden-size", "3"], "'--hidden-size'"),
        (["--out", "{file}"], "is no folder"),
    ],
)
def test_mistakes_of_the_command_end_in_one_line(argv, says, tmp_path, capsys):
    (tmp_path / "file").touch()
    argv = [word.format(file=tmp_path / "file") for word in argv]
    assert main(["diagnose", *argv]) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert says in error
    assert error.count("\n") == 1
