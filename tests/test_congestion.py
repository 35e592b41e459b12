"""Congestion games: the variance's decomposition, the optimum, episodes, names, and pictures."""

from __future__ import annotations

import json
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perla.cli import main
from perla.envs import registry
from perla.envs.checks import check_traced
from perla.envs.congestion import (
    EXAMPLES,
    HOME,
    VALUES,
    Congestion,
    Decomposition,
    State,
    best_allocations,
    make_env,
    variances,
)
from perla.envs.wrappers import AutoReset
from perla.errors import UserError

KEY = jax.random.key(0)


def state_of(game, levels, homes):
    """A state with these levels and homes."""
    level = jnp.asarray(levels)
    nobody = jnp.full(game.resources, -1)
    return State(level, jnp.asarray(homes), nobody, level, jnp.int32(0))


def row(game, levels):
    """The row of the tables of these levels."""
    return np.ravel_multi_index(levels, (len(VALUES),) * game.resources)


def welfare(game, levels, homes, joint):
    """W of one joint action, agent by agent."""
    q, at, total = np.exp(-game.resources / game.agents), [0] * game.resources, 0.0
    for action, home in zip(joint, homes, strict=True):
        total += VALUES[levels[action]] * q ** at[action] + HOME * (action == home)
        at[action] += 1
    return total


def enumerated(game, levels, homes):
    """W of all joint actions, an axis for each agent's."""
    shape = (game.resources,) * game.agents
    values = [welfare(game, levels, homes, joint) for joint in product(*map(range, shape))]
    return np.reshape(values, shape)


SMALL = [
    (Congestion(2, 0.5), (0, 1, 2, 2)),
    (Congestion(3, 0.3, resources=2), (2, 0)),
    (Congestion(4, 1.0, resources=3), (0, 2, 1)),
    (Congestion(5, 0.1), (2, 1, 1, 0)),
    (Congestion(6, 0.9, resources=2), (1, 1)),
]
IDS = [f"n{game.agents}-m{game.resources}" for game, _ in SMALL]


# --- Rewards ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("game", "levels"), SMALL, ids=IDS)
def test_uniform_policies_earn_0_and_the_best_joint_action_earns_1(game, levels):
    homes = np.random.default_rng(0).permutation(np.arange(game.agents) % game.resources)
    table, state = enumerated(game, levels, homes), state_of(game, levels, homes)
    joint = np.moveaxis(np.indices(table.shape), 0, -1).reshape(-1, game.agents)
    rewards = jax.jit(jax.vmap(game.expected_reward, (None, 0)))(state, jnp.asarray(joint))
    assert rewards.mean() == pytest.approx(0, abs=1e-5)
    assert rewards.max() == pytest.approx(1, abs=1e-5)
    # The reward is the welfare, shifted and scaled.
    scale = table.max() - table.mean()
    np.testing.assert_allclose(rewards, (table.ravel() - table.mean()) / scale, atol=1e-5)
    best = joint[rewards.argmax()]
    index = row(game, levels)
    assert game.tables.best[index] == pytest.approx(table.max())
    assert game.tables.uniform[index] == pytest.approx(table.mean())
    allocation = game.tables.allocation[index]
    assert allocation.sum() == game.agents
    counts = np.bincount(best, minlength=game.resources)
    value, q = np.array(VALUES)[list(levels)], np.exp(-game.resources / game.agents)
    home = np.bincount(homes, minlength=game.resources)

    def planned(counts):
        """The welfare of an allocation with as many agents at home as possible."""
        shared = value * (1 - q**counts) / (1 - q)
        return (shared + HOME * np.minimum(counts, home)).sum()

    assert planned(allocation) == pytest.approx(planned(counts))


def test_greedy_allocations_are_the_best_of_all_for_uneven_homes():
    rng = np.random.default_rng(1)
    for _ in range(20):
        homes = rng.multinomial(7, np.ones(3) / 3)
        value, q = rng.uniform(0.2, 3, (1, 3)), rng.uniform(0.3, 0.95)
        _, best = best_allocations(value, homes, q)
        splits = [c for c in product(range(8), repeat=3) if sum(c) == 7]
        counts = np.array(splits)
        shared = value * (1 - q**counts) / (1 - q) + HOME * np.minimum(counts, homes)
        assert best[0] == pytest.approx(shared.sum(-1).max())


@pytest.mark.parametrize(("agents", "home", "shared"), [(2, 0.30, 0.91), (20, 0.63, 0.70)])
def test_neither_homes_nor_values_alone_say_what_is_best(agents, home, shared):
    game = Congestion(agents, 0.5)
    homes, q = np.bincount(np.arange(agents) % 4, minlength=4), np.exp(-4 / agents)
    value = np.array(VALUES)[np.indices((3,) * 4).reshape(4, -1).T]

    def reward(counts, at_home):
        """The mean reward over states."""
        welfare = (value * (1 - q**counts) / (1 - q)).sum(-1) + HOME * at_home
        uniform, best = game.tables[:2]
        return ((welfare - uniform) / (best - uniform)).mean()

    # Beside values a million times as large homes only break ties.
    counts, _ = best_allocations(value * 1e6, homes, q)
    assert reward(homes, agents) == pytest.approx(home, abs=0.01)
    assert reward(counts, agents / 4) == pytest.approx(shared, abs=0.01)


def test_every_agent_earns_the_same_and_sees_the_noise_it_should():
    game = make_env("n10-others0.3")
    state, _ = game.reset(KEY)
    action = jnp.arange(10) % 4
    keys = jax.random.split(KEY, 4_000)
    _, timestep = jax.jit(jax.vmap(game.step, (0, None, None)))(keys, state, action)
    assert (timestep.reward == timestep.reward[:, :1]).all()
    reward = np.asarray(timestep.reward[:, 0], float)
    sigma = float(game.deviation(state))
    assert sigma > 0
    assert abs(reward.mean() - float(game.expected_reward(state, action))) < 4 * sigma / 63
    assert reward.std() == pytest.approx(sigma, rel=4 / np.sqrt(2 * 4_000))


# --- The variance -------------------------------------------------------------------------------


@pytest.mark.parametrize(("game", "levels"), SMALL, ids=IDS)
def test_the_decomposition_is_that_of_all_joint_actions(game, levels):
    homes = np.arange(game.agents) % game.resources
    table = enumerated(game, levels, homes)
    table = (table - table.mean()) / (table.max() - table.mean())
    agents = range(game.agents)
    rest = [tuple(other for other in agents if other != agent) for agent in agents]
    own = np.mean([table.mean(axis).var() for axis in rest])
    others = np.mean([table.mean(agent).var() for agent in agents])
    given_own = np.mean([table.var(axis).mean() for axis in rest])
    parts = Decomposition(*(part[row(game, levels)] for part in game.tables.parts))
    assert parts.own == pytest.approx(own)
    assert parts.others == pytest.approx(others)
    assert parts.interaction == pytest.approx(table.var() - own - others)
    assert parts.others + parts.interaction == pytest.approx(given_own)
    # The share of Var(r | s, aᵢ) is the dial.
    assert given_own / (given_own + parts.noise) == pytest.approx(game.others)


@pytest.mark.parametrize(("agents", "others"), [(2, 0.5), (20, 0.1), (50, 0.9)])
def test_the_dial_is_met_by_what_is_played(agents, others):
    """Within 3 standard errors, over states, actions and noise: pairs of steps with the same state
    and the same action of agent i differ by what the others and the noise do."""
    game = Congestion(agents, others)
    size = 20_000

    def sample(key):
        key_state, key_agent, *keys = jax.random.split(key, 6)
        state, _ = game.reset(key_state)
        agent = jax.random.randint(key_agent, (), 0, agents)
        one, two = (jax.random.randint(k, (agents,), 0, game.resources) for k in keys[:2])
        same = jnp.where(jnp.arange(agents) == agent, one, two)
        quiet = [game.expected_reward(state, action) for action in (one, two, same)]
        noisy = [
            game.step(k, state, a)[1].reward[0] for k, a in zip(keys[2:], (one, same), strict=True)
        ]
        return *quiet, *noisy

    draws = jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(agents), size))
    one, two, same, first, second = np.asarray(draws, float)
    parts = game.decomposition()

    def check(squares, expected):
        assert abs(squares.mean() - expected) < 3 * squares.std() / np.sqrt(size)

    check((one - two) ** 2 / 2, parts.own + parts.others + parts.interaction)
    check((one - same) ** 2 / 2, parts.others + parts.interaction)
    check((first - second) ** 2 / 2, parts.others + parts.interaction + parts.noise)
    by_others = (one - same) ** 2 - others * (first - second) ** 2
    check(by_others, 0)


@pytest.mark.parametrize("others", [0.01, 0.5, 1.0])
def test_the_dial_holds_in_every_state_for_every_number_of_agents(others):
    for agents in (2, 3, 5, 20, 50):
        parts = Congestion(agents, others).tables.parts
        np.testing.assert_allclose(parts.share, others)
        assert all((part >= -1e-12).all() for part in parts)
        # One agent's part of the actions' variance is at most 1/N where the reward is common.
        by_actions = parts.own + parts.others + parts.interaction
        assert (parts.own <= by_actions / agents + 1e-12).all()
    assert (parts.noise == 0).all() == (others == 1.0)


def test_a_reward_that_is_a_sum_has_no_interaction():
    value, homes = np.zeros((1, 3)), np.array([2, 2, 1])
    own, others, interaction = variances(value, homes, 0.5)
    assert own[0] == pytest.approx(HOME**2 * 2 / 9)
    assert others[0] == pytest.approx(4 * HOME**2 * 2 / 9)
    assert interaction[0] == pytest.approx(0)


# --- Episodes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "game", [make_env("n2-others0.5"), make_env("n5-others1", resources=2, limit=3)], ids=str
)
def test_a_game_is_an_environment(game):
    check_traced(game.spec.id, game)
    assert registry.make_env(make_env("n2-others0.5").spec.id).spec == make_env("n2-others0.5").spec


def test_episodes_are_truncated_and_homes_dealt_evenly():
    game = make_env("n6-others0.5")
    state, seen = game.reset(KEY)
    step, homes, levels = jax.jit(game.step), [], []
    for time in range(1, game.limit + 1):
        assert seen.obs.shape == (6, game.spec.obs)
        assert seen.state.shape == (game.spec.state,)
        np.testing.assert_array_equal(seen.obs[:, 4:].argmax(-1), state.home)
        np.testing.assert_array_equal(seen.obs[0, :4], np.asarray(state.level) - 1.0)
        np.testing.assert_array_equal(np.bincount(state.home), [2, 2, 1, 1])
        homes.append(tuple(state.home.tolist()))
        levels.append(tuple(state.level.tolist()))
        state, timestep = step(jax.random.key(time), state, jnp.zeros(6, int))
        seen = timestep.observation
        assert not timestep.terminated
        assert bool(timestep.truncated) == (time == game.limit)
    assert len(set(homes)) > 15
    assert 2 < len(set(levels)) < 25


def test_resources_change_as_often_as_they_should():
    for change in (0.0, 0.2, 1.0):
        game = make_env("n2-others0.5", change=change)
        state, _ = jax.vmap(game.reset)(jax.random.split(KEY, 2_000))
        for level in range(3):
            assert abs((state.level == level).mean() - 1 / 3) < 4 * np.sqrt(2 / 9 / 8_000)
        keys = jax.random.split(jax.random.key(1), 2_000)
        after, _ = jax.vmap(game.step)(keys, state, jnp.zeros((2_000, 2), int))
        changed = float((after.level != state.level).mean())
        assert changed == pytest.approx(change * 2 / 3, abs=4 * np.sqrt(0.25 / 8_000))


def test_copies_follow_their_own_episodes():
    copies = AutoReset(make_env("n3-others0.5", limit=2), 16)
    state, _ = jax.jit(copies.reset)(KEY)
    step = jax.jit(copies.step)
    for time in range(1, 5):
        state, timestep = step(jax.random.key(time), state, jnp.zeros((16, 3), int))
        assert (timestep.truncated == (time % 2 == 0)).all()
        assert (state.time == time % 2).all()
        assert len(set(timestep.reward[:, 0].tolist())) == 16


# --- Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("n1-others0.5", {}, "congestion: agents = 1: expected 2 to 50"),
        ("n51-others0.5", {}, "congestion: agents = 51: expected 2 to 50"),
        ("n5-others0", {}, "congestion: others = 0.0: expected 0.01 to 1"),
        ("n5-others1.5", {}, "congestion: others = 1.5: expected 0.01 to 1"),
        ("n5", {}, "unknown congestion game 'n5': expected nN-othersD, for example"),
        ("n5-others-1", {}, "unknown congestion game 'n5-others-1'"),
        ("", {}, "unknown congestion game ''"),
        ("n5-others0.5", {"resources": 1}, "congestion: resources = 1: expected 2 to 6"),
        ("n5-others0.5", {"resources": 7}, "congestion: resources = 7: expected 2 to 6"),
        ("n5-others0.5", {"resources": "many"}, "resources = 'many': expected a whole number"),
        ("n5-others0.5", {"change": 2.0}, "congestion: change = 2.0: expected 0 to 1"),
        ("n5-others0.5", {"change": float("nan")}, "congestion: change = nan: expected 0 to 1"),
        ("n5-others0.5", {"limit": 0}, "congestion: limit = 0: expected 1 or more"),
        (
            "n5-others0.5",
            {"limits": 5},
            "unknown congestion option 'limits'; did you mean 'limit'?",
        ),
    ],
)
def test_what_is_no_game_is_told_in_one_line(name, options, told):
    with pytest.raises(UserError) as error:
        registry.make_env(f"congestion:{name}", **options)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_every_example_is_listed_and_is_a_game(capsys):
    assert main(["list", "envs"]) == 0
    listed = capsys.readouterr().out
    for name in EXAMPLES:
        assert make_env(name).spec.id == f"congestion:{name}"
        assert f"congestion:{name} " in listed
    with pytest.raises(UserError, match=r"did you mean 'congestion:n20-others0\.5'"):
        registry.make_env("n20-others0.5")


# --- Runs ---------------------------------------------------------------------------------------


def test_pictures_show_values_agents_and_the_best_allocation():
    game = make_env("n5-others0.5")
    state, _ = game.reset(KEY)
    after, _ = game.step(KEY, state, jnp.array([0, 0, 1, 2, 2]))
    rows = game.scene(after).values
    np.testing.assert_allclose(rows[0], np.array(VALUES)[np.asarray(state.level)])
    assert rows[1].tolist() == [2, 1, 2, 0]
    assert -rows[2].sum() == 5
    before, then = game.render(state), game.render(after)
    assert before.dtype == np.uint8
    assert before.shape == then.shape
    assert (before != then).any()


@pytest.mark.slow
def test_a_whole_run(tmp_path):
    out = tmp_path / "run"
    small = ["--num-envs", "4", "--rollout-length", "8", "--hidden-size", "8", "--num-layers", "1"]
    few = ["--num-evaluations", "2", "--eval-episodes", "2", "--absolute-episodes", "2"]
    env = ["--env", "congestion:n3-others0.5", "--env-option", "resources=2", "--steps", "128"]
    assert main(["train", "ippo", *env, "--out", str(out), *small, *few, "--quiet"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["environment"]["id"] == "congestion:n3-others0.5"
    assert config["environment"]["rules"]["resources"] == 2
    assert (out / "summary.json").exists()
    assert (out / "replay.gif").read_bytes().startswith(b"GIF8")
