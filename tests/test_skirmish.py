"""Skirmish: maps as data, sizes, masks, observations, states, rewards and ends as in SMAC."""

from __future__ import annotations

import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perla.envs import registry
from perla.envs.skirmish.battle import State
from perla.envs.skirmish.env import EXAMPLES, make_env
from perla.envs.skirmish.files import DATA, names
from perla.envs.skirmish.maps import load_map
from perla.envs.skirmish.terrain import find_paths, parse_terrain
from perla.envs.skirmish.units import standard_units
from perla.errors import UserError

# fmt: off
SIZES = {
    # agents, observation, state, state with last actions, actions, limit, largest unscaled return
    "2m_vs_1z": (2, 16, 12, 26, 7, 150, 360),
    "2s_vs_1sc": (2, 17, 13, 27, 7, 300, 510),
    "so_many_baneling": (7, 202, 131, 397, 38, 100, 1480),
    "bane_vs_bane": (24, 336, 264, 984, 30, 200, 1260),
    "1c3s5z": (9, 162, 135, 270, 15, 180, 1870),
    "2s3z": (5, 80, 65, 120, 11, 120, 1020),
    "3m": (3, 30, 21, 48, 9, 60, 365),
    "8m": (8, 80, 56, 168, 14, 120, 640),
    "MMM": (10, 160, 130, 290, 16, 150, 1015),
    "2c_vs_64zg": (2, 332, 202, 342, 70, 400, 3080),
    "3s5z": (8, 128, 104, 216, 14, 150, 1510),
    "25m": (25, 250, 175, 950, 31, 150, 1575),
    "3s5z_vs_3s6z": (8, 136, 110, 230, 15, 170, 1670),
    "MMM2": (10, 176, 142, 322, 18, 180, 1205),
    "corridor": (6, 156, 102, 282, 30, 400, 1280),
    "5m_vs_6m": (5, 55, 38, 98, 12, 70, 530),
    "10m_vs_11m": (10, 105, 73, 243, 17, 150, 805),
    "27m_vs_30m": (27, 285, 198, 1170, 36, 180, 1850),
    "6h_vs_8z": (6, 78, 56, 140, 14, 150, 1480),
    "3s_vs_5z": (3, 48, 35, 68, 11, 250, 1000),
}
# fmt: on
"""Sizes computed by SMAC's own code (oxwhirl/smac, d6aab33)."""


def test_the_maps_are_those_of_the_paper_and_five_more():
    assert set(names()) == set(SIZES)
    assert set(EXAMPLES) == {*SIZES, "path/to/map.toml"}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_smacs(name):
    env, without = make_env(name), make_env(name, state_last_action=False)
    agents, obs, state, state_with_actions, actions, limit, most = SIZES[name]
    assert env._features.sizes == (obs, state_with_actions)
    assert without._features.sizes == (obs, state)
    assert env._features.actions == actions
    assert (env.battle.agents, env.map.limit, env.max_reward) == (agents, limit, most)


def test_the_spec_has_the_sizes_and_the_rules():
    spec = registry.make_env("skirmish:MMM", rules="smaclite").spec
    assert (spec.id, spec.agents, spec.actions) == ("skirmish:MMM", 10, (16,) * 10)
    assert (spec.obs, spec.state, spec.limit, spec.mortal) == (160, 290, 150, True)
    assert spec.rules["rules"] == "smaclite"
    assert spec.rules["limit_is"] == "truncation"


def test_agents_are_in_smacs_order():
    allies = load_map("MMM", "smac").allies
    assert allies.names == ("marauder",) * 2 + ("marine",) * 7 + ("medivac",)
    assert load_map("bane_vs_bane", "smac").allies.names[:5] == ("baneling",) * 4 + ("zergling",)
    for rows in (slice(0, 2), slice(2, 9)):
        x = allies.start[rows, 0].tolist()
        assert x == sorted(x)


@pytest.mark.parametrize("name", SIZES)
def test_units_start_out_of_walls(name):
    map = load_map(name, "smac")
    for army in (map.allies, map.enemies):
        for unit, (x, y) in zip(army.units, army.start, strict=True):
            cells = map.terrain.climbable if unit.climbs else map.terrain.ground
            assert unit.plane == "air" or cells[int(y), int(x)]


# --- SMAC's own answers -------------------------------------------------------------------------

ANSWERS = np.load(Path(__file__).parent / "skirmish-smac.npz")
"""Random states, and the answers of SMAC's own module (oxwhirl/smac, d6aab33) to them, with the
game's client replaced by the states: those of 1,260 compared on 14 maps that are kept."""

SMAC_OPTIONS = {
    "default": {},
    "more": {
        "obs_last_action": True,
        "obs_timestep_number": True,
        "state_timestep_number": True,
        "reward_only_positive": False,
        "reward_defeat": -20.0,
        "state_last_action": False,
    },
    "less": {
        "obs_all_health": False,
        "obs_own_health": False,
        "reward_sparse": True,
        "obs_instead_of_state": True,
        "reward_scale": False,
    },
}


@pytest.mark.parametrize("options", SMAC_OPTIONS)
@pytest.mark.parametrize("name", ["3m", "2s3z", "2s_vs_1sc", "MMM", "corridor", "1c3s5z"])
def test_observations_states_masks_rewards_and_ends_are_smacs(name, options):
    env = make_env(name, **SMAC_OPTIONS[options])

    def given(field):
        return ANSWERS[f"{name}/{options}/{field}"]

    def copies_last(field):
        return jnp.asarray(given(field)).T

    zero = jnp.zeros_like(copies_last("x"))

    def state(hp, shield):
        return State(
            x=copies_last("x"),
            y=copies_last("y"),
            hp=copies_last(hp),
            shield=copies_last(shield),
            energy=copies_last("energy"),
            reserve=zero,
            cooldown=copies_last("cooldown"),
            hurt=zero,
            target=jnp.full(zero.shape, -1),
            doomed=zero > 0,
            goal=zero[:2],
            last_action=copies_last("last"),
            time=jnp.asarray(given("time")),
        )

    before, after = state("hp0", "shield0"), state("hp", "shield")
    answer = jax.jit(
        lambda a, b: (env._observe(b), env._ends(b), env._reward(a, b, *env._ends(b)[:2]))
    )
    observation, (won, _, over), reward = answer(before, after)
    assert (observation.obs.shape[1], observation.state.shape[0]) == env._features.sizes
    ours = {
        "obs": observation.obs,
        "state": observation.state,
        "avail": observation.avail,
        "reward": reward,
        "won": won,
        "over": over,
    }
    for field, value in ours.items():
        value = np.moveaxis(np.asarray(value), -1, 0)
        np.testing.assert_allclose(value, given(f"want_{field}"), atol=2e-5, err_msg=field)


# --- Steps --------------------------------------------------------------------------------------


def test_copies_are_stepped_as_if_alone():
    env = make_env("3m", start="jittered")
    keys = jax.random.split(jax.random.key(3), 4).reshape(2, 2)
    state, observation = jax.jit(jax.vmap(jax.vmap(env.reset)))(keys)
    action = observation.avail.shape[-1] - 1 - observation.avail[..., ::-1].argmax(-1)
    many = jax.jit(jax.vmap(jax.vmap(env.step)))(keys, state, action)
    step = jax.jit(env.step)
    for copy in ((0, 1), (1, 0)):
        alone = step(*jax.tree.map(lambda leaf, copy=copy: leaf[copy], (keys, state, action)))
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(many), strict=True):
            np.testing.assert_allclose(one, other[copy], rtol=1e-5, atol=1e-5)


def test_an_episode_is_truncated_at_the_limit_and_a_moved_agent_has_moved():
    env = registry.make_env("skirmish:3s_vs_5z")
    state, observation = jax.jit(env.reset)(jax.random.key(0))
    step, north = jax.jit(env.step), jnp.full(3, 2)
    after, timestep = step(jax.random.key(1), state, north)
    # Half a second at 2.9531 cells a second, but for what their neighbours push.
    np.testing.assert_allclose(after.y[:3] - state.y[:3], 1.4766, atol=1e-3)
    assert not timestep.truncated
    assert observation.avail.shape == (3, 11)
    late = state._replace(time=jnp.array(249), hp=state.hp.at[3:].set(1.0))
    _, timestep = step(jax.random.key(1), late, north)
    assert timestep.truncated
    assert not timestep.terminated


def test_a_jittered_start_is_near_the_maps():
    env = make_env("2s_vs_1sc", start="jittered")
    start = np.concatenate([env.map.allies.start, env.map.enemies.start])
    state, _ = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 64))
    gap = np.abs(np.stack([state.x, state.y], -1) - start[None])
    assert 0.7 < gap[:, :2].max() <= 0.7501
    assert gap[:, 2].max() < 1e-4  # A spine crawler has roots.
    share = np.asarray(state.hp) / env.battle.table("hp")[:, 0]
    assert 0.6 <= float(share.min()) < 0.65
    assert float(share.max()) > 0.95


def test_a_battle_is_drawn():
    env = make_env("MMM2")
    state, _ = jax.jit(env.reset)(jax.random.key(0))
    image = env.render(state)
    assert image.dtype == np.uint8
    assert image.shape == (480, 480, 3)
    dead = env.render(state._replace(hp=jnp.zeros_like(state.hp)))
    assert (image != dead).any()


# --- Maps and units as data ---------------------------------------------------------------------

OWN = """
limit = 40
terrain = [
    "..........",
    "..........",
    "...##.....",
    "..........",
    "..........",
]
order = { command = "attack-move", to = [1, 1] }

[units.archer]
hp = 60
radius = 0.4
speed = 2.5
range = 7
damage = 9
cooldown = 1.2
attributes = ["light"]

[[groups]]
side = "ally"
at = [2, 2]
units = { archer = 2, zealot = 1 }

[[groups]]
side = "enemy"
at = [8, 3]
units = { marine = 3 }
"""


def test_a_users_map_with_a_new_unit_is_an_environment(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    env = registry.make_env(f"skirmish:{path}", state_last_action=False)
    assert env.map.allies.names == ("archer", "archer", "zealot")
    # 3 agents of 4 + 1 + 2 types + 1 shield features, 3 enemies of 3 + 2.
    assert env.spec.state == 3 * 7 + 3 * 5
    state, observation = jax.jit(env.reset)(jax.random.key(0))
    assert observation.avail.any(-1).all()
    _, timestep = jax.jit(env.step)(jax.random.key(1), state, jnp.ones(3, int))
    assert np.isfinite(timestep.observation.obs).all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hp = 60", "hp = -60", r"units: archer\.hp = -60: .*> 0"),
        ("hp = 60\n", "", "units: archer: the field 'hp' is missing"),
        ("hp = 60", "hpp = 60", "units: archer: unknown field 'hpp'; did you mean 'hp'"),
        ("speed = 2.5", 'speed = "fast"', r"units: archer\.speed = 'fast'"),
        ("limit = 40", "limit = 0", r"limit = 0"),
        ("archer = 2", "archers = 2", "unknown type of unit 'archers'; did you mean 'archer'"),
        ("archer = 2", "archer = 200", "more than 127 units on one side"),
        ('"ally"', '"allies"', r"groups = .*'allies'"),
        ('"enemy"', '"ally"', "the side 'enemy' has no unit"),
        ("at = [8, 3]", "at = [80, 3]", r"the point \[80.0, 3.0\] is off the map"),
        (', to = [1, 1]', "", "an attack-move needs the point"),
        ("attack-move", "attack", "order = "),
        ("...##.....", "...#?.....", r"row 2 has '\?'"),
        ("...##.....", "...##....", "its rows need one length"),
        ("damage = 9", "damage = 9\nheal = { hp_per_s = 1, energy_per_hp = 1, energy_start = 0, "
         "energy_max = 9, energy_regen = 1 }", "archer: heal: a unit has damage or heal, not both"),
        ("limit = 40", "limit = 40\nally_types = ['zealot']", "ally_types = .*archer, zealot"),
        ("limit = 40", "limit = ", "own.toml: .*line 2"),
    ],
)  # fmt: skip
def test_a_wrong_map_is_refused_by_a_line_that_names_the_field(tmp_path, old, new, message):
    path = tmp_path / "own.toml"
    assert old in OWN
    path.write_text(OWN.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as error:
        make_env(str(path))
    assert str(error.value).startswith(str(path))


def test_wrong_names_and_options_are_refused_with_the_nearest():
    for options, message in (
        ({"rule": "smac"}, "unknown skirmish option 'rule'; did you mean 'rules'"),
        ({"rules": "smacv2"}, "unknown rules 'smacv2'; did you mean 'smac'"),
        ({"start": "jitter"}, "unknown start 'jitter'; did you mean 'jittered'"),
        ({"difficulty": 9}, "difficulty 9: expected 1 to 8"),
        ({"enemy_script": "mix"}, "unknown enemy_script 'mix'; did you mean 'mixed'"),
        ({"step_mul": 0}, "step_mul 0: a step needs at least 1 tick"),
        ({"step_mul": 1.5}, "step_mul 1.5: expected a whole number"),
        ({"reward_scale": 1}, "reward_scale 1: expected true or false"),
        ({"move_amount": -1}, r"move_amount -1\.0: a move needs more than 0"),
    ):
        with pytest.raises(UserError, match=message):
            make_env("3m", **options)
    with pytest.raises(UserError, match="unknown map of skirmish '4m'; did you mean"):
        make_env("4m")
    with pytest.raises(UserError, match="no such file"):
        make_env("nowhere.toml")


def test_units_of_both_rule_sets_have_sources():
    for rules in ("smac", "smaclite"):
        assert len(standard_units(rules)) == 10
        text = (DATA / f"units-{rules}.toml").read_text(encoding="utf-8")
        assert "0d6abbe" in text or "4.10.0.75689" in text
        assert set(tomllib.loads(text)) == set(standard_units(rules))


def test_paths_lead_around_walls_through_cells_in_sight():
    terrain = parse_terrain(["......", ".####.", ".####.", "......"], source="test")
    paths = find_paths(terrain)
    cell = {(x, y): y * 6 + x for x in range(6) for y in range(4)}
    way = [cell[1, 0]]
    while way[-1] != cell[1, 3]:
        way.append(int(paths.via[paths.index[way[-1]], paths.index[cell[1, 3]]]))
        assert len(way) < 6
    assert cell[0, 1] in way or cell[0, 2] in way or cell[0, 0] in way
    assert find_paths(parse_terrain(["...."] * 3, source="test")) is None
