"""Skirmish: duels, healing and regrowth as recorded from SMAClite, and laws of every battle."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perla.envs.skirmish.battle import Battle, Orders
from perla.envs.skirmish.env import EXAMPLES, make_env
from perla.envs.skirmish.maps import parse_map
from perla.envs.skirmish.scripts import SCRIPTS, make_script, play
from perla.envs.skirmish.simulate import simulate
from perla.envs.skirmish.start import start_battle
from perla.envs.skirmish.units import RULES, standard_units
from perla.envs.wrappers import AutoReset, sample_actions
from perla.errors import UserError

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


def fight_all(command, distance, ticks, copies):
    """All recorded duels, side by side: states, and the numbers of each duel's two units."""
    names = [name.split(" > ") for name in RECORD["duels"]]
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
    states, pairs = fight_all("passive", reach, ticks, 1)
    for (name, duel), (one, other) in zip(RECORD["duels"].items(), pairs, strict=True):
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
    copies = 6
    states, pairs = fight_all("hold", shortest, ticks, copies)
    for name, (one, other) in zip(RECORD["duels"], pairs, strict=True):
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


def check_laws(name, steps, copies, **options):
    """Play random available actions, and check every state; return the shares of won episodes."""
    env = AutoReset(make_env(name, **options), copies)
    battle, terrain = env.env.battle, env.env.map.terrain
    walks = np.array([unit.plane == "ground" and not unit.climbs for unit in battle.units])
    cells = jnp.asarray(terrain.ground)
    bound = 20 + 20 / env.env.max_reward

    def check(before, action, state, timestep):
        leaves = [leaf for leaf in jax.tree.leaves((state, timestep)) if leaf.dtype == jnp.float32]
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
        inside = (state.x >= 0) & (state.x < terrain.width) & (state.y >= 0)
        inside &= state.y < terrain.height
        ground = cells[state.y.astype(int), state.x.astype(int)] | ~walks[None]
        same = state.time == before.time + 1  # Neither is the first state of an episode.
        dead = (before.hp <= 0) & same[:, None]
        still = ~dead | ((state.x == before.x) & (state.y == before.y) & (state.hp <= 0))
        most = battle.table("hp").T, battle.table("shield").T
        bars = (state.hp >= 0) & (state.hp <= most[0]) & (state.shield >= 0)
        bars &= (state.shield <= most[1]) & (state.energy >= 0) & (state.reserve >= -1e-5)
        reward = (timestep.reward >= 0) & (timestep.reward <= bound)
        masks = timestep.observation.avail.any(-1) & timestep.final.avail.any(-1)
        idle = timestep.final.avail[..., 0] != timestep.final.alive
        checks = (finite, inside, ground, still, bars, reward, masks, idle)
        return jnp.stack([jnp.asarray(each).all() for each in checks])

    def body(carry, key):
        state, avail = carry
        key_action, key_step = jax.random.split(key)
        action = sample_actions(key_action, env.spec, avail)
        after, timestep = env.step(key_step, state, action)
        held = check(state, action, after, timestep)
        return (after, timestep.observation.avail), held

    state, observation = env.reset(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), steps)
    _, held = jax.jit(lambda c: jax.lax.scan(body, c, keys))((state, observation.avail))
    names = ("finite", "on the map", "out of walls", "the dead rest", "bars", "reward", "masks",
             "no-op")  # fmt: skip
    held = dict(zip(names, np.asarray(held).all(0).tolist(), strict=True))
    assert all(held.values()), (name, held)


@pytest.mark.parametrize("name", ["MMM2", pytest.param("corridor", marks=pytest.mark.slow)])
def test_laws_hold_under_random_actions(name):
    check_laws(name, steps=150, copies=8, start="jittered")


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["smac", "smaclite"])
@pytest.mark.parametrize("name", [name for name in EXAMPLES if "/" not in name])
def test_laws_hold_for_long(name, rules):
    check_laws(name, steps=2000, copies=32, rules=rules, start="jittered")


# --- Scripts ------------------------------------------------------------------------------------


def test_scripts_that_fight_beat_random_actions():
    env = make_env("3m")
    results = {}
    for name in ("nearest", "focus-fire", "random"):
        script = make_script(env, name)
        results[name] = jax.jit(lambda key, script=script: play(env, script, key, 64))(
            jax.random.key(0)
        )
    won = {name: float(result["won"].mean()) for name, result in results.items()}
    assert won["random"] < 0.2
    assert won["focus-fire"] > won["random"] + 0.3
    for result in results.values():
        ends = (result["allies_left"] == 0) | (result["enemies_left"] == 0)
        assert (ends | (result["length"] == 60)).all()


def test_an_unknown_script_is_refused():
    assert "kite" in SCRIPTS
    with pytest.raises(UserError, match=r"unknown script 'kites'; did you mean 'kite'\?"):
        make_script(make_env("3m"), "kites")
