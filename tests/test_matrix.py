"""Matrix games: payoffs, ends of episodes, names, and files of payoffs."""

from __future__ import annotations

import json
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perla.cli import main
from perla.envs import registry
from perla.envs.matrix import (
    EXAMPLES,
    MOST,
    MatrixGame,
    Overgeneralisation,
    State,
    Table,
    make_env,
)
from perla.envs.wrappers import AutoReset
from perla.errors import UserError

KEY = jax.random.key(0)
STEP = jax.jit(lambda game, state, action: game.step(KEY, state, action), static_argnums=0)


def payoff(game, *action):
    """What one step pays everyone."""
    state, _ = game.reset(KEY)
    _, timestep = STEP(game, state, jnp.asarray(action))
    (paid,) = set(timestep.reward.tolist())
    return paid


# --- payoffs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("climbing", [[11, -30, 0], [-30, 7, 0], [0, 6, 5]]),
        ("penalty-0", [[0, 0, 10], [0, 2, 0], [10, 0, 0]]),
        ("penalty-25", [[-25, 0, 10], [0, 2, 0], [10, 0, -25]]),
        ("penalty-50", [[-50, 0, 10], [0, 2, 0], [10, 0, -50]]),
        ("penalty-75", [[-75, 0, 10], [0, 2, 0], [10, 0, -75]]),
        ("penalty-100", [[-100, 0, 10], [0, 2, 0], [10, 0, -100]]),
        ("overgeneralisation-n2-a3", [[8, -12, -12], [-12, 0, 0], [-12, 0, 0]]),
        ("overgeneralisation-n2-a2", [[8, -12], [-12, 0]]),
    ],
)
def test_known_games_pay_what_the_literature_says(name, table):
    game = make_env(name)
    for row, column in np.ndindex(len(table), len(table)):
        assert payoff(game, row, column) == table[row][column]
    np.testing.assert_array_equal(game.table(), table)


@pytest.mark.parametrize(("agents", "each"), [(2, 5), (3, 3), (5, 2), (4, 4)])
def test_all_none_or_some_play_the_first_action(agents, each):
    table = make_env(f"overgeneralisation-n{agents}-a{each}").table()
    for joint in product(range(each), repeat=agents):
        firsts = joint.count(0)
        assert table[joint] == (8 if firsts == agents else -12 if firsts > 0 else 0)


@pytest.mark.parametrize(
    ("others", "paid"),
    [([0] * 19, 8), ([0] * 18 + [1], -12), ([1] * 19, -12), ([2, 1] + [0] * 17, -12)],
    ids=["all", "all but one", "one alone", "most"],
)
def test_twenty_agents_need_no_table(others, paid):
    game = make_env("overgeneralisation-n20-a3")
    assert payoff(game, 0, *others) == paid
    assert payoff(game, 2, *[1] * 19) == 0
    with pytest.raises(UserError, match="more than 1,048,576 payoffs"):
        game.table()


@pytest.mark.parametrize("agents", [2, 3])
@pytest.mark.parametrize("p", [0.0, 1 / 3, 0.375, 0.4365, 0.8, 1.0])
def test_the_worth_of_the_first_action_is_the_known_one(agents, p):
    """D(p) = 20 p^(N−1) − 12 (1 − p)^(N−1): what action 0 has over another if others have p."""
    worth = make_env(f"overgeneralisation-n{agents}-a3").table().astype(float)
    for _ in range(agents - 1):
        worth = worth @ np.array([p, (1 - p) / 4, 3 * (1 - p) / 4])
    first, second, third = worth
    assert second == pytest.approx(third)
    assert second == pytest.approx(-12 + 12 * (1 - p) ** (agents - 1))
    gain = 20 * p ** (agents - 1) - 12 * (1 - p) ** (agents - 1)
    assert first - second == pytest.approx(gain)
    tipping = 1 / (1 + (5 / 3) ** (1 / (agents - 1)))
    assert tipping == pytest.approx({2: 0.375, 3: 0.4365}[agents], abs=1e-4)
    if abs(p - tipping) > 1e-3:
        assert (gain > 0) == (p > tipping)


def test_random_games_are_what_their_names_say():
    game, again, other = (make_env(f"random-n3-a4-s{seed}").table() for seed in (0, 0, 1))
    np.testing.assert_array_equal(game, again)
    assert (game != other).all()
    assert game.shape == (4, 4, 4)
    assert payoff(make_env("random-n3-a4-s0"), 1, 2, 3) == game[1, 2, 3]
    many = make_env("random-n6-a6-s5").payoff.values
    assert abs(many.mean()) < 4.5 / np.sqrt(many.size)
    assert abs(many.std() - 1) < 4.5 / np.sqrt(2 * many.size)


# --- episodes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "best", "optimum"),
    [
        ("climbing-t25", (0, 0), 275),
        ("penalty-100-t25", (2, 0), 250),
        ("overgeneralisation-n3-a3-t4", (0, 0, 0), 32),
    ],
)
def test_repeated_games_add_up_and_are_truncated(name, best, optimum):
    game = make_env(name)
    state, _ = game.reset(KEY)
    timesteps = []
    for _ in range(game.limit):
        state, timestep = STEP(game, state, jnp.asarray(best))
        timesteps.append(timestep)
    assert sum(timestep.reward for timestep in timesteps).tolist() == [optimum] * len(best)
    cut = [bool(timestep.truncated) for timestep in timesteps]
    assert cut == [False] * (game.limit - 1) + [True]
    assert not any(timestep.terminated for timestep in timesteps)
    assert game.spec.rules["limit_is"] == "truncation"
    assert state.time == game.limit


def test_a_game_that_is_played_once_terminates():
    game = make_env("climbing")
    state, timestep = STEP(game, game.reset(KEY)[0], jnp.array([1, 2]))
    assert timestep.terminated
    assert not timestep.truncated
    assert state.action.tolist() == [1, 2]
    assert game.spec.limit == 1
    assert game.spec.rules["limit_is"] == "termination"


@pytest.mark.parametrize("name", ["climbing", "overgeneralisation-n20-a15", "random-n3-a2-s1-t7"])
def test_shapes_are_those_the_spec_announces(name):
    game = make_env(name)
    spec = game.spec
    state, seen = jax.eval_shape(game.reset, KEY)
    action = jax.ShapeDtypeStruct((spec.agents,), jnp.int32)
    after, timestep = jax.eval_shape(game.step, KEY, state, action)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), after
    )
    for observation in (seen, timestep.observation, timestep.final):
        assert observation.obs.shape == (spec.agents, spec.obs)
        assert observation.state.shape == (spec.state,)
        assert observation.avail.shape == (spec.agents, spec.max_actions)
    assert timestep.reward.shape == (spec.agents,)
    assert timestep.reward.dtype == jnp.float32
    assert spec.id == f"matrix:{name}"
    assert spec.reward == "common"
    assert registry.make_env(spec.id).spec == spec


@pytest.mark.parametrize("name", ["climbing", "climbing-t3"])
def test_copies_follow_their_own_episodes(name):
    game = make_env(name)
    copies = AutoReset(game, 40)
    assert copies.reset_batch == (40 if game.limit == 1 else 13)
    state, seen = jax.jit(copies.reset)(KEY)
    step = jax.jit(copies.step)
    for time in range(1, 5):
        action = jax.random.randint(jax.random.key(time), (40, 2), 0, 3)
        state, timestep = step(KEY, state, action)
        table = game.table()[tuple(np.asarray(action).T)]
        np.testing.assert_array_equal(timestep.reward, np.stack([table, table], -1))
        ended = time % game.limit == 0
        assert (timestep.terminated == (ended and game.limit == 1)).all()
        assert (timestep.truncated == (ended and game.limit > 1)).all()
        assert (state.time == time % game.limit).all()
        assert (seen.obs == 1).all()
        assert (timestep.observation.state == 1).all()


# --- names ----------------------------------------------------------------------------------


def test_sizes_of_a_fixed_game_may_be_said():
    assert make_env("climbing-n2-a3").spec == make_env("climbing").spec
    assert make_env("penalty-25-n2-a3-t25").spec.id == "matrix:penalty-25-t25"
    assert make_env("climbing-t1").spec == make_env("climbing").spec


def test_rules_are_stamped():
    assert make_env("climbing").spec.rules["payoff"] == [[11, -30, 0], [-30, 7, 0], [0, 6, 5]]
    assert make_env("overgeneralisation-n20-a3").spec.rules["payoff"].startswith("8 if all")
    digests = {make_env(f"random-n4-a4-s{seed}").spec.rules["payoff"] for seed in (0, 0, 1)}
    assert len(digests) == 2
    assert all(digest.startswith("sha256:") for digest in digests)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("climbin", "unknown matrix game 'climbin'; did you mean 'climbing'?"),
        ("penalty-10", "did you mean 'penalty-100'?"),
        ("relative-overgeneralization-n2-a3", "did you mean 'overgeneralisation'?"),
        ("", "unknown matrix game ''"),
        ("overgeneralisation-n3", "lacks its number of actions; for example 'overgeneralisation-"),
        ("random-n3-a3", "lacks its seed; for example 'random-n3-a4-s0'"),
        ("random", "lacks its number of agents"),
        ("climbing-n3-a3", "takes no 'n3'; for example 'climbing'"),
        ("overgeneralisation-n2-a3-s1", "takes no 's1'"),
        ("overgeneralisation-n1-a3", "a game needs at least 2 agents, not 1"),
        ("overgeneralisation-n2-a1", "needs at least 2 actions, agent 0 has 1"),
        ("overgeneralisation-n999999-a999999", "more than 1,048,576 actions"),
        ("random-n999999-a2-s0", "more than 1,048,576 actions"),
        ("random-n21-a2-s0", "more than 1,048,576 payoffs"),
        ("climbing-t0", "a limit of 0 steps"),
        ("climbing-a3-n2-t25", "unknown matrix game 'climbing-a3'"),
        ("payoffs.npy", "payoffs.npy: payoffs are read from JSON files"),
        ("games/mine", "games/mine: payoffs are read from JSON files"),
    ],
)
def test_bad_names_are_told_in_one_line(name, told):
    with pytest.raises(UserError) as error:
        make_env(name)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_there_are_no_options():
    with pytest.raises(UserError, match="unknown matrix option 'limit'"):
        registry.make_env("matrix:climbing", limit=25)


def test_a_forgotten_family_is_guessed():
    for name in ("climbing", "overgeneralisation-n4-a3"):
        with pytest.raises(UserError, match=f"did you mean 'matrix:{name}'"):
            registry.make_env(name)


def test_every_example_is_a_game(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path/to").mkdir(parents=True)
    (tmp_path / "path/to/payoffs.json").write_text("[[1, 0], [0, 1]]")
    assert main(["list", "envs"]) == 0
    listed = capsys.readouterr().out
    for name in EXAMPLES:
        assert make_env(name).spec.id == f"matrix:{name}"
        assert f"matrix:{name} " in listed


# --- files ----------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write `payoffs.json`, and make its game."""
    monkeypatch.chdir(tmp_path)

    def write(text, suffix=""):
        (tmp_path / "payoffs.json").write_text(text if isinstance(text, str) else json.dumps(text))
        return registry.make_env(f"matrix:payoffs.json{suffix}")

    return write


def test_a_file_is_a_game(written):
    table = np.arange(8.0).reshape(2, 2, 2)
    game = written(table.tolist(), "-t5")
    assert game.spec.id == "matrix:payoffs.json-t5"
    assert game.spec.rules["payoff"] == table.tolist()
    assert game.spec.limit == 5
    for joint in np.ndindex(2, 2, 2):
        assert payoff(game, *joint) == table[joint]


def test_agents_may_differ_in_their_actions(written):
    game = written([[1, 2, 3], [4, 5, -6e1]])
    assert game.spec.actions == (2, 3)
    assert game.observe().avail.tolist() == [[True, True, False], [True] * 3]
    assert payoff(game, 1, 2) == -60


def test_the_largest_table_is_held():
    agents = MOST.bit_length() - 1
    assert make_env(f"random-n{agents}-a2-s0").payoff.values.size == MOST


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[1, 2], [3, NaN]]", "entry [1][1] is NaN, not a finite"),
        ("[[1, 2], [-Infinity, 4]]", "entry [1][0] is -Infinity, not a finite"),
        ("[[1, 1e999], [3, 4]]", "entry [0][1] is Infinity, not a finite"),
        ("[[1, 1e39], [3, 4]]", "entry [0][1] is 1e+39, not a finite 32-bit number"),
        (f"[[1, {10**400}], [3, 4]]", "entry [0][1] is 1000"),
        ("[[1, 2], [3, null]]", "entry [1][1] is null, not a number"),
        ("[[1, 2], [true, 4]]", "entry [1][0] is true, not a number"),
        ('[[1, "2"], [3, 4]]', 'entry [0][1] is "2", not a number'),
        ("[[1, 2], [3, [4]]]", "entry [1][1] is [4], not a number"),
        ("[[1, 2, 3], [4, 5]]", "row [1] has 2 entries, not 3 as row [0]"),
        ("[[[1, 2], [3, 4]], [[5, 6], [7]]]", "row [1][1] has 1 entries, not 2 as row [0][0]"),
        ("[[1, 2], 3]", "row [1] is 3, not a list of 2"),
        ("[[1, 2], {}]", "row [1] is {}, not a list of 2"),
        ("[1, 2, 3]", "a game needs at least 2 agents, not 1"),
        ("[[1], [2]]", "an agent needs at least 2 actions, agent 1 has 1"),
        ("[[], []]", "an agent needs at least 2 actions, agent 1 has 0"),
        ("[]", "a game needs at least 2 agents, not 1"),
        ("3", "not a list"),
        ('{"payoffs": [[1, 2], [3, 4]]}', "not a list"),
        ("[[1, 2], [3, 4]", "not JSON: Expecting ',' delimiter"),
        ("__import__('os').abort()", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("", "not JSON"),
    ],
    ids=lambda value: value[:30],
)
def test_a_file_that_is_no_table_names_the_entry(written, text, told):
    with pytest.raises(UserError) as error:
        written(text)
    message = str(error.value)
    assert message.startswith("payoffs.json: ")
    assert told in message
    assert "\n" not in message
    assert len(message) < 120


def test_a_file_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "bytes.json").write_bytes(b"\x80\x04\x95")
    for name, told in (
        ("missing.json", "no such file or directory"),
        ("folder.json", "is a directory"),
        ("bytes.json", "not JSON"),
    ):
        with pytest.raises(UserError, match=f"^{name}: {told}"):
            make_env(name)


# --- pictures -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["climbing", "overgeneralisation-n20-a3", "random-n3-a4-s0", "overgeneralisation-n2-a9999"],
)
def test_pictures_show_what_was_played(name):
    game = make_env(name)
    start, _ = game.reset(KEY)
    played = [State(jnp.full(game.spec.agents, action), jnp.int32(1)) for action in range(2)]
    pictures = [game.render(state) for state in (start, *played)]
    assert {picture.dtype for picture in pictures} == {np.dtype(np.uint8)}
    ((height, width, colours),) = {picture.shape for picture in pictures}
    assert colours == 3
    assert 390 <= max(height, width) <= 420
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[1] != pictures[2]).any()


# --- training -------------------------------------------------------------------------------


def test_a_whole_run(tmp_path):
    out = tmp_path / "run"
    small = ["--num-envs", "4", "--rollout-length", "2", "--hidden-size", "8", "--num-layers", "1"]
    few = ["--num-evaluations", "2", "--eval-episodes", "2", "--absolute-episodes", "2"]
    env = ["--env", "matrix:overgeneralisation-n3-a2", "--steps", "64", "--out", str(out)]
    assert main(["train", "ippo", *env, *small, *few, "--quiet"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["environment"]["id"] == "matrix:overgeneralisation-n3-a2"
    assert (out / "summary.json").exists()
    assert (out / "replay.gif").read_bytes().startswith(b"GIF8")


def test_games_are_told_apart_by_what_they_pay():
    game = MatrixGame("mine", Overgeneralisation(2, 3))
    assert game == MatrixGame("mine", Overgeneralisation(2, 3))
    assert hash(game) == hash(MatrixGame("mine", Overgeneralisation(2, 3)))
    assert game != MatrixGame("mine", Overgeneralisation(2, 4))


# --- Data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tabulated", [False, True])
def test_balanced_data_hold_every_payoff_equally_often(tabulated):
    game = make_env("overgeneralisation-n3-a4")
    payoff = Table(game.table()) if tabulated else game.payoff
    joint = payoff.sample_payoff_balanced(jax.random.key(0), 9_000)
    levels, level, counts = np.unique(game.payoff(joint), return_inverse=True, return_counts=True)
    joint = np.asarray(joint)
    np.testing.assert_array_equal(levels, [-12, 0, 8])
    np.testing.assert_allclose(counts, 3_000, atol=200)
    for which, ways in enumerate((64 - 27 - 1, 27, 1)):
        _, each = np.unique(joint[level == which], axis=0, return_counts=True)
        assert len(each) == ways
        np.testing.assert_allclose(each, 3_000 / ways, atol=5 * np.sqrt(3_000 / ways) + 200 / ways)


def test_uniform_data_hold_every_joint_action_equally_often():
    game = MatrixGame("uneven", Table(np.zeros((2, 3), np.float32)))
    _, each = np.unique(
        game.sample_joint_actions("uniform", jax.random.key(0), 6_000), axis=0, return_counts=True
    )
    assert len(each) == 6
    np.testing.assert_allclose(each, 1_000, atol=150)
