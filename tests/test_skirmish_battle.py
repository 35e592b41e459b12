"""Skirmish: duels, healing and regrowth as recorded from SMAClite, and laws of every battle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import skirmish_laws
from marks import slow
from perla.envs.skirmish.battle import Battle, Orders
from perla.envs.skirmish.env import EXAMPLES, make_env
from perla.envs.skirmish.maps import parse_map
from perla.envs.skirmish.simulate import rests, simulate
from perla.envs.skirmish.start import start_battle
from perla.envs.skirmish.units import RULES, standard_units
from perla.errors import UserError
from skirmish_laws import check_laws

RECORD = json.loads((Path(__file__).parent / "skirmish-duels.json").read_text())
"""SMAClite's duels, tick by tick; `provenance` says how they were recorded."""

UNITS = standard_units("smaclite")


def battle(groups, order, rules="smaclite", terrain="band"):
    content = {"limit": 10, "terrain": terrain, "order": order, "groups": groups}
    return Battle(parse_map(content, rules, name="test", source="test"), RULES[rules])


def group(side, x, y, **units):
    return {"side": side, "at": [x, y], "units": units}


def record(battle, ticks, copies=1, target=None, change=lambda state: state):
    """States after each tick, `[tick, unit, copy]`; tick 0 is the start."""
    seed = jnp.arange(copies, dtype=jnp.uint32) * np.uint32(7919)
    agents = battle.agents
    target = np.full(agents, -1) if target is None else np.asarray(target)
    rest = jnp.zeros((agents, copies))
    targets = jnp.broadcast_to(jnp.asarray(target)[:, None], rest.shape)
    orders = Orders(targets, rest > 0, rest, rest)

    def body(state, number):
        after = simulate(battle, seed + number, state, orders, 1)
        return after, after

    start = change(start_battle(battle, "map", seed))
    states = jax.jit(lambda start: jax.lax.scan(body, start, jnp.arange(ticks, dtype=jnp.uint32)))
    return jax.tree.map(
        lambda first, rest: np.concatenate([first[None], rest]), start, states(start)[1]
    )


# --- Duels --------------------------------------------------------------------------------------

SPACE = 22
"""Distance between duels that are fought side by side, in which nobody notices another."""
TOGETHER = 27
"""Duels of one battle: it costs as the square of its units, and a program."""


def fights(command, distance, ticks, copies=1):
    """All recorded duels: the name, states, and the numbers of the two units of each."""
    names = list(RECORD["duels"])
    for first in range(0, len(names), TOGETHER):
        some = names[first : first + TOGETHER]
        states, pairs = fight(some, command, distance, ticks, copies)
        for name, pair in zip(some, pairs, strict=True):
            yield name, states, pair


def fight(duels, command, distance, ticks, copies):
    """These duels, side by side: states, and the numbers of each duel's two units."""
    names = [name.split(" > ") for name in duels]
    side = int(np.ceil(np.sqrt(len(names))))
    places = [(SPACE * (i % side) + 9.0, SPACE * (i // side) + 9.0) for i in range(len(names))]
    groups = []
    for (one, other), (x, y) in zip(names, places, strict=True):
        groups += [group("ally", x, y, **{one: 1})]
        groups += [group("enemy", x + distance(one, other), y, **{other: 1})]
    arena = battle(groups, {"command": command}, terrain=["." * SPACE * side] * SPACE * side)
    starts = np.concatenate([arena.map.allies.start, arena.map.enemies.start])
    pairs = []
    for (one, other), (x, y) in zip(names, places, strict=True):
        to = (x + distance(one, other), y)
        ally, enemy = (np.abs(starts - place).sum(1).argmin() for place in ((x, y), to))
        pairs.append((int(ally), int(enemy)))
    target = np.full(arena.agents, -1)
    for ally, enemy in pairs:
        target[ally] = enemy
    return record(arena, ticks, copies, target), pairs


def reach(one, other):
    return UNITS[one].range + UNITS[one].radius + UNITS[other].radius - 1e-3


def shortest(one, other):
    return min(reach(one, other), reach(other, one))


def life(states, tick, unit, copy=0):
    return states.hp[tick, unit, copy], states.shield[tick, unit, copy]


def test_an_attacker_wears_its_target_down_hit_by_hit_as_in_smaclite():
    ticks = max(each["passive"]["ticks"] for each in RECORD["duels"].values() if each["passive"])
    for name, states, (one, other) in fights("passive", reach, ticks):
        duel = RECORD["duels"][name]
        if not duel["passive"]:  # It cannot hit the other's plane.
            assert (states.hp[:, other] == states.hp[0, other]).all(), name
            continue
        known = duel["passive"]
        both = states.hp[:, [one, other], 0]
        end = int((both <= 0).any(1).argmax())
        assert end == known["ticks"], name
        left = (*life(states, end, one), *life(states, end, other))
        wanted = [
            known[f"{who}_{what}"] for who in ("attacker", "target") for what in ("hp", "shield")
        ]
        np.testing.assert_allclose(left, wanted, atol=2e-3, err_msg=name)
        total = states.hp[: end + 1, other, 0] + states.shield[: end + 1, other, 0]
        hits = np.flatnonzero(np.diff(total) < -0.1) + 1
        # The record does not list all of the last hits.
        assert hits[: len(known["ticks_of_hits"])].tolist() == known["ticks_of_hits"], name
        for index, row in enumerate(known["trace_every_16"], 1):
            now = (*life(states, 16 * index, one), *life(states, 16 * index, other))
            np.testing.assert_allclose(now, row, atol=2e-3, err_msg=f"{name} at {16 * index}")


def test_a_duel_ends_in_one_of_the_ways_it_ended_in_smaclite():
    fought = {name: duel["mutual"] for name, duel in RECORD["duels"].items() if duel["mutual"]}
    ticks = max(end["ticks"] for ends in fought.values() for end in ends)
    copies = 4
    for name, states, (one, other) in fights("hold", shortest, ticks, copies):
        if name not in fought:
            continue
        fields = ("ticks", "attacker_hp", "attacker_shield", "target_hp", "target_shield")
        known = np.array([[end[field] for field in fields] for end in fought[name]])
        if UNITS[name.split(" > ")[0]] == UNITS[name.split(" > ")[1]]:
            known = np.concatenate([known, known[:, [0, 3, 4, 1, 2]]])
        for copy in range(copies):
            end = int((states.hp[:, [one, other], copy] <= 0).any(1).argmax())
            now = [end, *life(states, end, one, copy), *life(states, end, other, copy)]
            # Four recorded seeds do not show both orders of the first hit and the regeneration of
            # its tick, which is 0.024.
            assert (np.abs(known - now).max(1) < 0.026).any(), (name, now, known)


def test_healing_takes_life_and_energy_as_in_smaclite():
    arena = battle(
        [group("ally", 5, 16, medivac=1), group("ally", 7, 16, marauder=1),
         group("enemy", 28, 16, marine=1)],
        {"command": "passive"},
    )  # fmt: skip
    assert arena.map.allies.names == ("marauder", "medivac")
    trace = RECORD["heal"]["trace"]
    states = record(
        arena, trace[-1][0], target=[-1, 0], change=lambda s: s._replace(hp=s.hp.at[0].set(1.0))
    )
    got = [(tick, states.hp[tick, 0, 0], states.energy[tick, 1, 0]) for tick, *_ in trace]
    np.testing.assert_allclose(got, trace, atol=2e-3)


def test_shields_and_life_grow_back_as_in_smaclite():
    arena = battle(
        [group("ally", 5, 16, stalker=1), group("ally", 8, 16, zergling=1),
         group("enemy", 28, 16, marine=1)],
        {"command": "passive"},
    )  # fmt: skip
    trace = RECORD["regrowth"]["trace"]

    def wound(state):
        return state._replace(
            shield=state.shield.at[0].add(-50.0),
            hurt=state.hurt.at[0].set(160.0),
            hp=state.hp.at[1].add(-20.0),
        )

    states = record(arena, trace[-1][0], change=wound)
    got = [(tick, states.shield[tick, 0, 0], states.hp[tick, 1, 0]) for tick, *_ in trace]
    np.testing.assert_allclose(got, trace, atol=2e-3)


# --- Rules of StarCraft II ----------------------------------------------------------------------


def test_a_baneling_that_is_killed_explodes_and_spares_its_own_side():
    groups = [
        group("ally", 10, 16, marine=1),
        group("ally", 13.5, 16, zealot=1),
        group("enemy", 14.5, 16, baneling=1),
        group("enemy", 15.5, 16, zergling=1),
    ]
    for rules, explodes in (("smac", True), ("smaclite", False)):
        arena = battle(groups, {"command": "passive"}, rules)
        states = record(arena, 80, target=[2, -1])
        end = int((states.hp[:, 2, 0] <= 0).argmax())
        assert states.hp[end, 2, 0] <= 0
        hurt = states.shield[end + 1, 1, 0] < 50
        assert hurt == explodes
        if explodes:  # 20, and 15 more to light units.
            assert states.shield[end + 1, 1, 0] == 50 - 35
        assert (states.hp[:, 3] == 35).all()


def test_cooldowns_vary_by_a_tick_less_to_two_more():
    arena = battle(
        [group("ally", 10, 16, marine=1), group("enemy", 14, 16, spine_crawler=1)],
        {"command": "passive"},
        "smac",
    )
    states = record(arena, 200, copies=32, target=[1])
    hits = np.diff(states.hp[:, 1], axis=0) < -1
    periods = np.concatenate([np.diff(np.flatnonzero(hits[:, copy])) for copy in range(32)])
    # 0.8608 s are 13.77 ticks; a shot falls on the first tick at or after its time.
    assert set(periods) == {13, 14, 15, 16}


def test_zerglings_find_the_ramps_and_reach_the_colossi_on_their_plateau():
    env = make_env("2c_vs_64zg")
    state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 4))
    stay = jnp.ones((4, 2), jnp.int32)

    def body(state, key):
        state, timestep = jax.vmap(env.step)(jax.random.split(key, 4), state, stay)
        return state, timestep.terminated

    state, over = jax.jit(lambda s: jax.lax.scan(body, s, jax.random.split(jax.random.key(1), 80)))(
        state
    )
    assert over.any(0).all()


def test_a_side_is_hurt_by_either_side_first():
    arena = battle(
        [group("ally", 12, 16, baneling=1), group("enemy", 13, 16, baneling=1)],
        {"command": "hold"},
    )
    hp = record(arena, 1, copies=64, target=[1]).hp[1]
    # Both die: the one by its own attack, the other by it, before or after its own.
    assert (hp <= 0).all()
    arena = battle(
        [group("ally", 12, 16, marine=1), group("enemy", 14, 16, marine=1)], {"command": "hold"}
    )
    hp = record(arena, 71, copies=64, target=[1]).hp[71]
    alive = (hp > 0).mean(1)
    assert 0.2 < alive[0] < 0.8
    np.testing.assert_array_equal(alive.sum(), 1)


# --- Laws of every battle -----------------------------------------------------------------------


START_AND_SCRIPT = {"start": "random", "team": "zerg", "enemy_script": "mixed", "difficulty": 5}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("MMM2", {"start": "jittered"}),
        *slow(
            (
                "5m_vs_6m",
                {"start": "random", "team": "zerg", "enemy_script": "mixed", "difficulty": 5},
            ),
            ("corridor", {"start": "random"}),
        ),
    ],
)
def test_laws_hold_under_random_actions(name, options):
    broken, done = check_laws(name, 3_000, copies=8, steps=100, **options)
    assert not broken
    assert done >= 3_000


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["smac", "smaclite"])
@pytest.mark.parametrize("name", [name for name in EXAMPLES if "/" not in name])
def test_laws_hold_for_long(name, rules):
    assert not check_laws(name, 200_000, copies=32, rules=rules, start="jittered")[0]


def test_a_broken_law_is_noticed(monkeypatch):
    original = skirmish_laws._laws

    def shifted(env):
        held_by = original(env)
        return lambda before, state, timestep: held_by(
            before, state._replace(x=state.x + 40.0), timestep
        )

    monkeypatch.setattr(skirmish_laws, "_laws", shifted)
    broken, _ = check_laws("3m", 1, copies=2, steps=2)
    assert "units are on the map" in broken


# --- Enemies ------------------------------------------------------------------------------------


def test_enemies_that_focus_fire_attack_the_weakest_in_range():
    groups = [
        group("ally", 13, 16, marine=1), group("ally", 10, 16, marine=1),
        group("enemy", 14.5, 16, marine=1),
    ]  # fmt: skip
    for script, hurt in (("nearest", 1), ("focus-fire", 0)):
        arena = dataclasses.replace(
            battle(groups, {"command": "hold"}, "smac", "band"), script=script
        )
        assert arena.starts[:2, 0].tolist() == [10.0, 13.0]
        states = record(arena, 3, change=lambda s: s._replace(hp=s.hp.at[0].set(20.0)))
        assert states.target[1, 2, 0] == hurt


def test_enemies_that_kite_step_back_while_their_weapon_cools():
    groups = [group("ally", 12, 16, zealot=1), group("enemy", 16, 16, marine=1)]
    places = {}
    for script in ("nearest", "kite"):
        arena = dataclasses.replace(battle(groups, {"command": "hold"}, "smac"), script=script)
        places[script] = record(arena, 8).x[:, 1, 0]
    assert (places["nearest"] == 16).all()
    # It shoots in the first tick, and walks back at 2.25 cells a second for most of seven ticks.
    assert 0.6 < places["kite"][-1] - 16 < 1.0


def test_enemies_rest_by_the_difficulty_and_see_everything_at_the_highest():
    arena = battle([group("ally", 2, 16, marine=1), group("enemy", 30, 16, marine=1)],
                   {"command": "hold"}, "smac")  # fmt: skip
    seeds = jnp.arange(4000, dtype=jnp.uint32) * np.uint32(7919)
    assert rests(arena, seeds) is None
    for difficulty, share in ((6, 0.1), (1, 0.6)):
        found = rests(dataclasses.replace(arena, difficulty=difficulty), seeds)
        assert abs(float(found.mean()) - share) < 0.03
    for difficulty, walks in ((7, False), (8, True)):
        states = record(dataclasses.replace(arena, difficulty=difficulty), 8)
        assert (states.x[-1, 1, 0] < 30) == walks
    seed = jnp.zeros(1, jnp.uint32)
    start = start_battle(arena, "map", seed)
    order = Orders(jnp.full((1, 1), -1), jnp.zeros((1, 1), bool), *jnp.zeros((2, 1, 1)))
    near = start._replace(x=start.x.at[1].set(4.0))
    resting = simulate(arena, seed, near, order._replace(rests=jnp.ones((1, 1), bool)), 1)
    assert resting.hp[0, 0] == 45 > simulate(arena, seed, near, order, 1).hp[0, 0]


def test_mixed_enemies_draw_a_script_in_every_episode():
    env = make_env("3m", enemy_script="mixed")
    state, _ = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 300))
    counts = np.bincount(np.asarray(state.script), minlength=3)
    assert (counts > 70).all()
    after, _ = jax.jit(jax.vmap(env.step))(
        jax.random.split(jax.random.key(1), 300), state, jnp.ones((300, 3), int)
    )
    assert (after.script == state.script).all()


# --- Random starts and teams --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["10m_vs_11m", "corridor"])
def test_random_starts_surround_the_agents_or_reflect_them(name):
    env = make_env(name, start="random")
    state, observation = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 200))
    agents = env.spec.agents
    x, y = np.asarray(state.x), np.asarray(state.y)
    assert env.map.terrain.ground[y.astype(int), x.astype(int)].all()
    assert len(np.unique(x.round(3), axis=0)) == 200
    spread = x[:, :agents].std(1)
    assert 60 < (spread < 1.0).sum() < 140  # Packed in the middle in half of the episodes.
    if name == "10m_vs_11m":
        apart = spread > 3
        width = 2 * env.map.terrain.width / 2
        mirrored = np.abs(x[:, :agents] + x[:, agents : 2 * agents] - width) < 1e-3
        assert mirrored[apart].all()
        assert (y[apart, :agents] == y[apart, agents : 2 * agents]).all()
    np.testing.assert_allclose(state.goal[:, 0], x[:, :agents].mean(1), rtol=1e-4)
    assert observation.avail.any(-1).all()


def test_random_teams_have_the_weights_and_a_unit_that_fights():
    env = make_env("3m", team="marine:1,medivac:3")
    assert env.spec.agents == 3
    state, observation = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 500))
    assert ((state.hp > 0).sum(1) == 6).all()
    kinds = np.array([name == "medivac" for name in env.battle.map.allies.names] * 2)
    healers = kinds[np.asarray(state.roster)]
    assert not healers[:, :3].all(1).any()
    assert (healers[:, :3] == healers[:, 3:]).all()  # Both sides have the same team.
    assert abs(healers[:, :3].mean() - 3 * 0.75 * (1 - 0.75**2) / (1 - 0.75**3) / 3) < 0.06
    # The agent's own type and life, at the end of its observation; types are in the roster's order.
    own = np.asarray(observation.obs)[:, :, -3:]
    assert (own[:, :, 0] == 1).all()
    assert ((own[:, :, 2] == 1) == healers[:, :3]).all()
    assert (np.diff(healers[:, :3].astype(int), axis=1) >= 0).all()


def test_a_team_without_chance_is_the_map():
    """With one type of unit the slots are the units, and every step is that of the map."""
    one, other = make_env("3m"), make_env("3m", team="marine:1")
    assert one.spec.obs == other.spec.obs
    key = jax.random.key(5)
    states = [env.reset(key)[0] for env in (one, other)]
    np.testing.assert_array_equal(states[1].roster, np.arange(6))
    for number in range(6):
        action = jnp.array([4, 4, 4]) if number < 3 else jnp.array([6, 7, 8])
        (left, a), (right, b) = (
            jax.jit(env.step)(jax.random.fold_in(key, number), state, action)
            for env, state in zip((one, other), states, strict=True)
        )
        states = left, right
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-6)


def test_orders_of_slots_reach_their_units():
    env = make_env("3m", team="marine:1,zealot:1")
    keys = jax.random.split(jax.random.key(3), 16)
    state, observation = jax.jit(jax.vmap(env.reset))(keys)
    west = jnp.broadcast_to(jnp.array([5, 1, 1]), (16, 3))
    after, _ = jax.jit(jax.vmap(env.step))(keys, state, west)
    moved = np.asarray(after.x - state.x)[:, :6] < -0.5
    assert (moved.sum(1) == 1).all()
    assert (moved.argmax(1) == state.roster[:, 0]).all()
    assert len(set(np.asarray(state.roster[:, 0]).tolist())) == 2
    assert observation.avail.shape == (16, 3, 9)


@pytest.mark.parametrize(
    ("team", "message"),
    [
        ("teran", "unknown team 'teran'; did you mean 'terran'"),
        ("marin:1", "unknown type of unit 'marin'; did you mean 'marine'"),
        ("marine:0", "'marine:0': expected type:weight above 0"),
        ("marine:1,zealot", "'zealot': expected type:weight"),
    ],
)
def test_a_wrong_team_is_refused(team, message):
    with pytest.raises(UserError, match=message):
        make_env("3m", team=team)
