"""Foraging against the original, side by side: same positions, levels and actions."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("lbforaging")

from scipy.stats import chi2_contingency

from lbf_oracle import begin, original, record
from marks import slow
from perla.envs.foraging import PAPER_MAPS, make_env

CONFIGURATIONS = [(name, 0.0) for name in PAPER_MAPS] + [
    ("Foraging-1s-8x8-3p-3f-v3", 0.0),
    ("Foraging-2s-10x10-4p-3f-v3", 0.0),
    ("Foraging-3s-15x15-5p-4f-v2", 0.0),
    ("Foraging-4s-6x6-9p-2f-coop-v2", 0.0),
    ("Foraging-grid-8x8-2p-2f-coop-v2", 0.0),
    ("Foraging-grid-1s-10x10-3p-3f-v3", 0.0),
    ("Foraging-grid-2s-8x8-6p-2f-v2", 0.3),
    ("Foraging-5x5-9p-1f-v3", 0.1),
    ("Foraging-8x8-4p-3f-coop-v3", 0.5),
    ("Foraging-6x6-1p-2f-v3", 0.2),
]
BATCH = 50
"""Episodes compared at once, so that grid observations fit in memory."""


@pytest.mark.parametrize(
    "episodes", [pytest.param(32, id="32"), pytest.param(1000, id="1000", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("name", "penalty"), CONFIGURATIONS)
def test_agrees_with_the_original(name, penalty, episodes):
    env = make_env(name, penalty=penalty, reward="individual")
    common = replace(env, reward="common")

    @jax.jit
    @jax.vmap
    def replay(players, player_levels, foods, food_levels, actions):
        def both(state, action):
            _, shared = common.step(jax.random.key(0), state, action)
            state, own = env.step(jax.random.key(0), state, action)
            return state, (own, shared.reward)

        start = env.place(players, player_levels, foods, food_levels)
        return env.observe(start), jax.lax.scan(both, start, actions)[1]

    overlaps = eaten = 0
    for seed in range(-(-episodes // BATCH)):
        theirs = record(env, min(BATCH, episodes), seed)
        first, (ours, shared) = jax.device_get(replay(*theirs[:4], theirs.action))
        took_place = np.arange(env.limit)[None, :] < theirs.length[:, None]

        assert first.obs.dtype == ours.observation.obs.dtype == np.float32
        np.testing.assert_array_equal(first.obs, theirs.first)
        np.testing.assert_array_equal(
            ours.observation.obs[took_place], theirs.obs[took_place], err_msg="observation"
        )
        np.testing.assert_array_equal(
            (ours.terminated | ours.truncated)[took_place], theirs.done[took_place]
        )
        np.testing.assert_allclose(
            ours.reward[took_place], theirs.reward[took_place], rtol=1e-6, atol=1e-6
        )
        summed = np.broadcast_to(theirs.reward.sum(-1, keepdims=True), shared.shape)
        np.testing.assert_allclose(shared[took_place], summed[took_place], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(
            ours.observation.state,
            ours.observation.obs.reshape(*ours.observation.obs.shape[:2], -1),
        )
        overlaps, eaten = overlaps + theirs.overlaps, eaten + theirs.eaten
    assert eaten > 0, "the recorded policy must eat, or nothing was compared"
    assert overlaps > 0 or env.players < 6, "crowded environments must show agents that overlap"


def draws_of_the_original(env, count):
    original_env, rng = original(env), np.random.default_rng(0)
    original_env.reset(seed=0)
    rows = []
    for _ in range(count):
        begin(original_env, env, rng)
        cells = np.flatnonzero(original_env.field)
        none = [-1] * (env.foods - len(cells))
        rows.append(
            [player.position[0] * env.size + player.position[1] for player in original_env.players]
            + [player.level for player in original_env.players]
            + [*cells, *none]
            + [*original_env.field.ravel()[cells], *none]
        )
    return np.asarray(rows)


def draws_of_ours(env, count):
    keys = jax.random.split(jax.random.key(0), count)
    state = jax.device_get(jax.jit(jax.vmap(lambda key: env.reset(key)[0]))(keys))
    there = state.food_level > 0
    return np.concatenate(
        [
            state.agent_row * env.size + state.agent_col,
            state.agent_level,
            np.where(there, state.food_row * env.size + state.food_col, -1),
            np.where(there, state.food_level, -1),
        ],
        axis=1,
    )


def chance_of_one_distribution(one, other):
    """The chi-square test's p-value that both samples (of numbers) are drawn alike; rare values
    are pooled."""
    values, which = np.unique(np.concatenate([one, other]), return_inverse=True)
    table = np.stack(
        [
            np.bincount(part, minlength=len(values))
            for part in (which[: len(one)], which[len(one) :])
        ]
    )
    rare = table.sum(0) < 20
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(1, keepdims=True)], axis=1)
    table = table[:, table.sum(0) > 0]
    return 1.0 if table.shape[1] < 2 else chi2_contingency(table).pvalue


@pytest.mark.parametrize(
    "name",
    [
        "Foraging-5x5-2p-2f-v2",
        *slow("Foraging-5x5-2p-2f-v3", "Foraging-8x8-3p-3f-v3", "Foraging-7x7-9p-4f-coop-v3"),
    ],
)
def test_first_states_are_drawn_as_the_original_draws_them(name):
    env = make_env(name)
    n, f = env.players, env.foods
    theirs, ours = draws_of_the_original(env, 3000), draws_of_ours(env, 12000)
    looks = {f"column {k}": lambda draw, k=k: draw[:, k] for k in range(2 * (n + f))}
    looks["foods placed"] = lambda draw: (draw[:, 2 * n : 2 * n + f] >= 0).sum(1)
    looks["levels"] = lambda draw: draw[:, n : 2 * n].sum(1) * 100 + draw[:, 2 * n + f]
    looks["foods together"] = lambda draw: draw[:, 2 * n] * 1000 + draw[:, 2 * n + 1]
    looks["food to agent"] = lambda draw: draw[:, 2 * n] - draw[:, 0]
    looks["agent to agent"] = lambda draw: draw[:, 1] - draw[:, 0]
    for what, look in looks.items():
        assert chance_of_one_distribution(look(theirs), look(ours)) > 1e-4, what


def test_the_original_breaks_the_same_way_where_a_cancelled_move_lets_another_in():
    env = make_env("Foraging-5x5-3p-1f-v3")
    original_env = original(env)
    original_env.reset(seed=0)
    cells, actions = [(0, 0), (0, 1), (0, 3)], [4, 4, 3]
    original_env.field[:] = 0
    original_env.field[3, 3] = 1
    for player, cell in zip(original_env.players, cells, strict=True):
        player.position = cell
    original_env._gen_valid_moves()
    original_env.step(actions)
    assert [player.position for player in original_env.players] == [(0, 1), (0, 1), (0, 3)]
    state = env.place(cells, [1, 1, 1], [(3, 3)], [1])
    state, _ = env.step(jax.random.key(0), state, jnp.asarray(actions))
    assert state.agent_row.tolist() == [0, 0, 0]
    assert state.agent_col.tolist() == [1, 1, 3]
