"""Foraging: its rules, clause by clause; its observations; its ids."""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perla.envs import registry
from perla.envs.foraging import (
    EAST,
    LOAD,
    NONE,
    NORTH,
    PAPER_MAPS,
    SOUTH,
    WEST,
    Foraging,
    make_env,
)
from perla.errors import UserError

KEY = jax.random.key(0)
STEP = jax.jit(lambda env, state, action: env.step(KEY, state, action), static_argnums=0)


def play(env, state, *joint_actions):
    """Step through `joint_actions`: the last state, and every timestep."""
    timesteps = []
    for action in joint_actions:
        state, timestep = STEP(env, state, jnp.asarray(action))
        timesteps.append(timestep)
    return state, timesteps


def cells(state):
    return list(zip(state.agent_row.tolist(), state.agent_col.tolist(), strict=True))


# --- moving ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "actions", "then"),
    [
        ([(2, 2), (4, 4)], [NORTH, NONE], [(1, 2), (4, 4)]),
        ([(2, 2), (4, 4)], [SOUTH, EAST], [(3, 2), (4, 4)]),
        ([(2, 2), (0, 0)], [WEST, WEST], [(2, 1), (0, 0)]),
        ([(2, 2), (0, 0)], [EAST, NORTH], [(2, 3), (0, 0)]),
    ],
    ids=["north", "south, and off the grid", "west, and off the grid", "east, and off the grid"],
)
def test_agents_move_within_the_grid(at, actions, then):
    env = make_env("Foraging-5x5-2p-1f-v2")
    state, _ = play(env, env.place(at, [1, 1], [(3, 3)], [1]), actions)
    assert cells(state) == then


@pytest.mark.parametrize(
    ("at", "actions", "then"),
    [
        ([(1, 1), (1, 2), (4, 4)], [EAST, WEST, NONE], [(1, 2), (1, 1), (4, 4)]),
        ([(1, 1), (1, 2), (4, 4)], [EAST, EAST, NONE], [(1, 2), (1, 3), (4, 4)]),
        ([(1, 1), (1, 2), (4, 4)], [EAST, NONE, NONE], [(1, 1), (1, 2), (4, 4)]),
        ([(1, 1), (1, 3), (4, 4)], [EAST, WEST, NONE], [(1, 1), (1, 3), (4, 4)]),
        ([(1, 1), (1, 2), (2, 3)], [EAST, EAST, NORTH], [(1, 2), (1, 2), (2, 3)]),
        ([(3, 2), (4, 4), (0, 0)], [EAST, NONE, NONE], [(3, 2), (4, 4), (0, 0)]),
        ([(3, 2), (2, 2), (0, 0)], [LOAD, SOUTH, NONE], [(3, 2), (2, 2), (0, 0)]),
        ([(0, 1), (0, 2), (4, 4)], [LOAD, WEST, NONE], [(0, 1), (0, 2), (4, 4)]),
    ],
    ids=[
        "two swap",
        "one follows another",
        "none enters the cell of one who stays",
        "none enters a contested cell",
        "one enters the cell of another whose move was contested: they overlap",
        "none enters food",
        "a loader stays, and holds its cell",
        "loading beside no food is staying",
    ],
)
def test_moves_are_simultaneous(at, actions, then):
    env = make_env("Foraging-5x5-3p-1f-v2")
    state, _ = play(env, env.place(at, [1, 1, 1], [(3, 3)], [3]), actions)
    assert cells(state) == then


# --- loading and reward ---------------------------------------------------------------------


def test_a_food_is_eaten_by_levels_that_suffice_and_each_earns_by_its_own():
    env = make_env("Foraging-8x8-3p-2f-v3", reward="individual")
    start = env.place([(2, 1), (1, 2), (2, 3)], [1, 2, 2], [(2, 2), (5, 5)], [3, 1])
    state, (timestep,) = play(env, start, [LOAD, LOAD, NONE])
    # level · food / (levels of the loaders · all food)
    np.testing.assert_allclose(timestep.reward, [1 * 3 / (3 * 4), 2 * 3 / (3 * 4), 0])
    assert state.food_level.tolist() == [0, 1]
    assert not timestep.terminated


def test_loaders_that_fail_pay_the_penalty_and_others_do_not():
    env = make_env("Foraging-8x8-3p-2f-v3", reward="individual", penalty=0.25)
    start = env.place([(2, 1), (1, 2), (7, 7)], [1, 1, 2], [(2, 2), (5, 5)], [3, 1])
    state, (timestep,) = play(env, start, [LOAD, LOAD, LOAD])
    np.testing.assert_allclose(timestep.reward, [-0.25, -0.25, 0])
    assert state.food_level.tolist() == [3, 1]


def test_common_reward_is_the_sum_for_everyone():
    env = make_env("Foraging-8x8-3p-2f-v3", penalty=0.25)
    start = env.place([(2, 1), (1, 2), (5, 4)], [1, 2, 2], [(2, 2), (5, 5)], [3, 3])
    _, (timestep,) = play(env, start, [LOAD, LOAD, LOAD])
    np.testing.assert_allclose(timestep.reward, [0.5 - 0.25] * 3)


@pytest.mark.parametrize("reward", ["common", "individual"])
def test_clearing_the_grid_returns_exactly_one_and_terminates(reward):
    env = make_env("Foraging-8x8-2p-2f-coop-v2", reward=reward)
    start = env.place([(2, 1), (2, 3)], [1, 2], [(2, 2), (4, 2)], [3, 3])
    _, timesteps = play(env, start, [LOAD, LOAD], [SOUTH, SOUTH], [SOUTH, SOUTH], [LOAD] * 2)
    returns = sum(timestep.reward for timestep in timesteps)
    np.testing.assert_allclose(returns.sum() if reward == "individual" else returns, 1.0)
    assert [bool(timestep.terminated) for timestep in timesteps] == [False] * 3 + [True]
    assert not any(timestep.truncated for timestep in timesteps)


# --- the end --------------------------------------------------------------------------------


def test_the_time_limit_truncates():
    env = make_env("Foraging-5x5-2p-1f-v2")
    state = env.place([(0, 0), (4, 4)], [1, 1], [(2, 2)], [1])
    _, timesteps = play(env, state, *[[NONE, NONE]] * 50)
    assert [bool(timestep.truncated) for timestep in timesteps] == [False] * 49 + [True]
    assert not any(timestep.terminated for timestep in timesteps)


def test_the_last_food_eaten_at_the_limit_only_terminates():
    env = make_env("Foraging-5x5-2p-1f-v2")
    state = env.place([(2, 1), (4, 4)], [1, 1], [(2, 2)], [1])._replace(time=jnp.asarray(49))
    _, (timestep,) = play(env, state, [LOAD, NONE])
    assert timestep.terminated
    assert not timestep.truncated


# --- observations ---------------------------------------------------------------------------


def test_observations_list_foods_then_oneself_then_the_others():
    env = make_env("Foraging-8x8-3p-2f-v2")
    start = env.place([(7, 0), (1, 2), (0, 7)], [1, 2, 1], [(5, 5), (2, 2)], [2, 3])
    seen = env.observe(start)
    food = [2, 2, 3, 5, 5, 2]
    a, b, c = [7, 0, 1], [1, 2, 2], [0, 7, 1]
    assert seen.obs.tolist() == [food + a + b + c, food + b + a + c, food + c + a + b]
    assert seen.state.tolist() == seen.obs.reshape(-1).tolist()
    assert seen.obs.dtype == jnp.float32
    assert seen.avail.shape == (3, 6)
    assert seen.avail.all()


def test_eaten_food_gives_its_place_in_the_list_to_the_next():
    env = make_env("Foraging-8x8-2p-2f-v2")
    start = env.place([(2, 1), (7, 7)], [1, 1], [(2, 2), (5, 5)], [1, 1])
    _, (timestep,) = play(env, start, [LOAD, NONE])
    assert timestep.observation.obs[0, :6].tolist() == [5, 5, 1, -1, -1, 0]


def test_sight_hides_what_is_far_and_counts_from_the_corner_of_the_window():
    env = make_env("Foraging-2s-8x8-3p-2f-v2")
    start = env.place([(4, 4), (0, 0), (3, 1)], [1, 2, 1], [(2, 2), (5, 5)], [3, 1])
    nothing = [-1, -1, 0]
    assert env.observe(start).obs.tolist() == [
        [0, 0, 3, 3, 3, 1] + [2, 2, 1] + nothing * 2,
        # Near the first row or column other agents are seen as far as 4, though food only 2 off.
        [2, 2, 3, *nothing] + [0, 0, 2] + [4, 4, 1] + [3, 1, 1],
        [1, 2, 3, *nothing] + [2, 1, 1] + [3, 4, 1] + nothing,
    ]


def test_grids_show_agents_food_and_where_one_may_go():
    env = make_env("Foraging-grid-1s-5x5-2p-1f-v2")
    start = env.place([(0, 0), (1, 1)], [1, 2], [(1, 2)], [3])
    seen = env.observe(start).obs.reshape(2, 3, 3, 3)
    assert seen[0, 0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 2]]
    assert seen[0, 1].tolist() == [[0, 0, 0]] * 3
    assert seen[0, 2].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert seen[1, 1].tolist() == [[0, 0, 0], [0, 0, 3], [0, 0, 0]]


@pytest.mark.parametrize("name", [*PAPER_MAPS, "Foraging-grid-2s-9x9-4p-3f-v3"])
def test_shapes_are_those_the_spec_announces(name):
    env = make_env(name)
    spec = env.spec
    state, seen = jax.eval_shape(env.reset, KEY)
    action = jax.ShapeDtypeStruct((spec.agents,), jnp.int32)
    after, timestep = jax.eval_shape(env.step, KEY, state, action)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), after
    )
    for observation in (seen, timestep.observation, timestep.final):
        assert observation.obs.shape == (spec.agents, spec.obs)
        assert observation.state.shape == (spec.state,)
        assert observation.avail.shape == (spec.agents, spec.max_actions)
    assert timestep.reward.shape == (spec.agents,)
    assert timestep.reward.dtype == jnp.float32
    assert spec.id == f"lbf:{name}"


# --- the beginning --------------------------------------------------------------------------


def draw(name, count=20_000):
    env = make_env(name)
    keys = jax.random.split(jax.random.key(7), count)
    return jax.device_get(jax.jit(jax.vmap(lambda key: env.reset(key)[0]))(keys))


@pytest.mark.parametrize("name", ["Foraging-5x5-9p-2f-v2", "Foraging-10x10-3p-5f-v2"])
def test_nothing_begins_where_it_may_not(name):
    env, state = make_env(name), draw(name, 4000)
    agents = state.agent_row * env.size + state.agent_col
    assert (np.diff(np.sort(agents, axis=1)) > 0).all()
    assert np.isin(state.agent_level, [1, 2]).all()
    there = state.food_level > 0
    food = np.where(there, state.food_row * env.size + state.food_col, -1)
    assert not (food[:, :, None] == agents[:, None, :]).any()
    for axis in (state.food_row, state.food_col):
        assert (there <= ((axis >= 1) & (axis <= env.size - 2))).all()
    assert (there[:, :-1] >= there[:, 1:]).all(), "absent foods come last"
    pairs = (there[:, :, None] & there[:, None, :]) & ~np.eye(env.foods, dtype=bool)[None]
    rows = np.abs(state.food_row[:, :, None] - state.food_row[:, None, :])
    cols = np.abs(state.food_col[:, :, None] - state.food_col[:, None, :])
    assert (np.maximum(rows, cols)[pairs] >= 2).all()
    assert (rows + cols)[pairs].min() >= 3
    assert (state.total == state.food_level.sum(1)).all()


def test_a_small_grid_sometimes_has_room_for_one_food_only():
    # When the first of two lies in the centre (1/9), or beside it with agents in both of the
    # cells then left (4/9 of 2 of 24·23).
    chance = 1 / 9 + 4 / 9 * 2 / (24 * 23)
    one = (draw("Foraging-5x5-2p-2f-v2").food_level > 0).sum(1) == 1
    assert abs(one.mean() - chance) < 4.5 * np.sqrt(chance * (1 - chance) / one.size)


@pytest.mark.parametrize(
    ("players", "version", "told"),
    [(2, 2, 8.3), (2, 3, 41.7), (3, 2, 45.0), (3, 3, 57.9), (5, 2, 21.7), (5, 3, 44.8)]
    + [(8, 2, 5.6), (8, 3, 36.3)],
)
def test_food_levels_follow_the_version(players, version, told):
    chances = []
    for levels in product((1, 2), repeat=players):
        lowest = sum(sorted(levels)[:3])
        upper = lowest if version == 3 else max(lowest - 1, 1)
        chances.append(np.mean(np.arange(1, upper + 1) > max(levels)))
    chance = np.mean(chances)
    assert abs(100 * chance - told) <= 0.051, "the chance that a food needs two loaders or more"
    state = draw(f"Foraging-8x8-{players}p-1f-v{version}")
    needs = state.food_level[:, 0] > state.agent_level.max(1)
    assert abs(needs.mean() - chance) < 4.5 * np.sqrt(chance * (1 - chance) / needs.size)


@pytest.mark.parametrize("version", [2, 3])
def test_coop_food_needs_the_three_lowest(version):
    state = draw(f"Foraging-8x8-5p-2f-coop-v{version}", 1000)
    lowest = np.sort(state.agent_level, axis=1)[:, :3].sum(1, keepdims=True)
    assert ((state.food_level == lowest) | (state.food_level == 0)).all()


def test_one_agent_of_level_one_finds_food_it_can_eat():
    state = draw("Foraging-5x5-1p-1f-v2", 1000)
    assert (state.food_level[:, 0] == 1).all()


# --- placing --------------------------------------------------------------------------------


def test_placed_foods_may_be_fewer_and_in_any_order():
    env = make_env("Foraging-8x8-2p-3f-v2")
    state = env.place([(0, 0), (1, 1)], [1, 2], [(6, 1), (2, 4)], [1, 2])
    assert state.food_row.tolist()[:2] == [2, 6]
    assert state.food_level.tolist() == [2, 1, 0]
    assert state.total == 3


@pytest.mark.parametrize(
    "places",
    [
        ([(0, 0)], [1], [(2, 2)], [1]),
        ([(0, 0), (1, 1)], [1], [(2, 2)], [1]),
        ([(0, 0), (1, 1)], [1, 1], [(2, 2), (4, 4), (2, 6)], [1, 1, 1]),
        ([(0, 0), (1, 1)], [1, 1], [(2, 2)], [1, 1]),
    ],
)
def test_placing_the_wrong_number_is_told(places):
    with pytest.raises(UserError, match="need positions"):
        make_env("Foraging-8x8-2p-2f-v2").place(*places)


# --- ids ------------------------------------------------------------------------------------


def test_ids_are_parsed_whole():
    env = make_env("Foraging-grid-3s-12x12-4p-2f-coop-v3", reward="individual", penalty=0.1)
    assert env == Foraging(
        size=12,
        players=4,
        foods=2,
        sight=3,
        coop=True,
        version=3,
        grid=True,
        reward="individual",
        penalty=0.1,
    )
    assert env.spec.id == "lbf:Foraging-grid-3s-12x12-4p-2f-coop-v3"
    assert registry.make_env("lbf:Foraging-5x5-2p-1f-v2") == make_env("Foraging-5x5-2p-1f-v2")


def test_rules_are_stamped():
    rules = make_env("Foraging-2s-8x8-3p-2f-v2", penalty=0.1).spec.rules
    assert rules["version"] == 2
    assert rules["sight"] == 2
    assert rules["penalty"] == 0.1
    assert rules["food_level"] == "uniform 1..S-1, at least 1"
    assert rules["limit"] == 50


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("Foraging-8x8-2p-2f-coop", "version, 'v2' or 'v3' is missing where it ends"),
        ("Foraging-8x8-2p-v2", "number of foods, such as '2f' is missing where 'v2' stands"),
        ("Foraging-8x8-2f-v2", "number of players, such as '2p' is missing where '2f' stands"),
        ("Foraging-2p-2f-v2", "size such as '8x8' is missing where '2p' stands"),
        ("foraging-8x8-2p-2f-v2", "Foraging is missing where 'foraging' stands"),
        ("Foraging-8x9-2p-2f-v2", "grids are square, and 8x9 is not"),
        ("Foraging-8x8-2p-2f-v1", "there is no version v1, only v2 and v3"),
        ("Foraging-8x8-2p-2f-v2-ind", "nothing may follow the version, yet 'ind' does"),
        ("Foraging-8x8-2p-2f-coop-2s-v2", "is missing where '2s' stands"),
        ("", "Foraging is missing where '' stands"),
        ("Foraging-4x4-2p-1f-v2", "a grid of size 4 is too small"),
        ("Foraging-5x5-0p-1f-v2", "0 players cannot forage"),
        ("Foraging-5x5-25p-1f-v2", "25 players do not fit a 5x5 grid"),
        ("Foraging-5x5-2p-0f-v2", "0 foods leave nothing"),
        ("Foraging-5x5-2p-10f-v2", "10 foods do not fit the inner 3x3 cells"),
        ("Foraging-0s-5x5-2p-1f-v2", "a sight of 0 sees nothing"),
    ],
)
def test_bad_ids_are_told_in_one_line_with_an_example(name, cause):
    with pytest.raises(UserError) as told:
        make_env(name)
    message = str(told.value)
    assert cause in message
    assert "\n" not in message
    assert "for example 'Foraging-" in message


def test_the_example_is_the_nearest_map():
    with pytest.raises(UserError, match="for example 'Foraging-15x15-8p-1f-coop-v2'"):
        make_env("Foraging-15x15-8p-1f-coop")


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"penalti": 0.1}, "unknown foraging option 'penalti'; did you mean 'penalty'?"),
        ({"penalty": -1.0}, "penalty -1.0 is not a finite number of 0 or more"),
        ({"limit": 0}, "a limit of 0 steps is too small"),
    ],
)
def test_bad_options_are_told(options, cause):
    with pytest.raises(UserError, match="^" + cause.replace("?", r"\?")):
        make_env(PAPER_MAPS[0], **options)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"reward": "comon"}, "reward = 'comon': expected one of common, individual"),
        ({"mask": 7}, "mask = 7: expected true or false"),
        ({"penalty": "x"}, "penalty = 'x': expected a number"),
        ({"limit": 2.5}, "limit = 2.5: expected a whole number"),
    ],
)
def test_options_of_another_type_are_told(options, cause):
    with pytest.raises(UserError, match=f"^lbf:{PAPER_MAPS[0]}: {cause}$"):
        registry.make_env(f"lbf:{PAPER_MAPS[0]}", **options)


def test_the_limit_of_an_episode_is_an_option():
    env = registry.make_env("lbf:Foraging-5x5-2p-1f-coop-v2", limit=2)
    assert env.spec.limit == env.spec.rules["limit"] == 2
    state, _ = env.reset(jax.random.key(0))
    ends = []
    for _ in range(2):
        state, step = env.step(jax.random.key(0), state, jnp.zeros(2, jnp.int32))
        ends.append(bool(step.truncated))
    assert ends == [False, True]


# --- pictures -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 8, 15, 20])
def test_pictures_are_about_as_large_for_every_grid(size):
    env = make_env(f"Foraging-{size}x{size}-3p-1f-v2")
    crowd = [(0, 0), (1, 1), (1, 1)]
    picture = env.render(env.place(crowd, [1, 2, 1], [(3, 2)], [3]))
    assert picture.dtype == np.uint8
    assert picture.shape[0] == picture.shape[1]
    assert picture.shape[2] == 3
    assert 390 <= picture.shape[0] <= 420


def test_pictures_show_who_is_where():
    env = make_env("Foraging-8x8-2p-1f-v2")
    one = env.render(env.place([(0, 0), (5, 5)], [1, 2], [(2, 2)], [1]))
    other = env.render(env.place([(0, 0), (5, 5)], [1, 2], [(2, 2)], [2]))
    moved = env.render(env.place([(0, 1), (5, 5)], [1, 2], [(2, 2)], [1]))
    assert (one != other).any()
    assert (one != moved).any()


def test_the_mask_leaves_exactly_the_actions_that_change_something_or_stay():
    """An action is masked where the original would replace it by staying, as a step shows."""
    env = registry.make_env("lbf:Foraging-6x6-2p-2f-coop-v2", mask=True)
    state = env.place([[1, 1], [3, 2]], [1, 1], [[2, 1], [4, 4]], [2, 2])
    expected = [[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0]]
    np.testing.assert_array_equal(env.observe(state).avail, np.array(expected, bool))
    corner = env.place([[0, 0], [5, 5]], [1, 1], [[2, 2], [4, 4]], [2, 2])
    expected = [[1, 0, 1, 0, 1, 0], [1, 1, 0, 1, 0, 0]]
    np.testing.assert_array_equal(env.observe(corner).avail, np.array(expected, bool))
    plain = registry.make_env("lbf:Foraging-6x6-2p-2f-coop-v2")
    assert plain.observe(corner).avail.all()
