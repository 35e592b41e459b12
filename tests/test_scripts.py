"""Scripted policies, and `perla evaluate --policy`."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perla.cli import main
from perla.envs import registry
from perla.envs.battlefield import EAST, FIRST_TARGET, NOOP, STOP, WEST, Battlefield
from perla.envs.bridges.battlefields import read_battlefield
from perla.envs.protocol import Spec
from perla.envs.scripts import SCRIPTS, make_script
from perla.errors import UserError
from perla.loops.scripted import play, play_host
from perla.runs.sinks import final_table

ENV = registry.make_env("skirmish:3m")


def field(**changes):
    """Three agents, of which the last heals, and two enemies: one near, one weak."""
    values = {
        "x": [0.0, 1.0, 4.0], "y": [0.0, 0.0, 0.0], "life": [9.0, 5.0, 9.0],
        "hurt": [False, True, False], "ready": [True, True, True], "heals": [False, False, True],
        "enemy_x": [3.0, 5.0], "enemy_y": [0.0, 0.0], "enemy_life": [9.0, 2.0],
        "hittable": [[True, True], [True, True], [False, False]], "camp": [20.0, 0.0],
    } | changes  # fmt: skip
    return Battlefield(**{name: jnp.asarray(value) for name, value in values.items()})


def mask(*actions):
    """Masks of three agents with nine actions."""
    avail = np.zeros((3, 9), bool)
    for agent, available in enumerate(actions):
        avail[agent, list(available)] = True
    return jnp.asarray(avail)


ALL = mask({STOP, EAST, WEST, 6, 7}, {STOP, EAST, WEST, 6, 7}, {STOP, EAST, WEST, 6, 7})


@pytest.mark.parametrize(
    ("name", "changes", "avail", "expected"),
    [
        ("nearest", {}, ALL, [6, 6, 7]),
        ("focus-fire", {}, ALL, [7, 7, 7]),
        ("kite", {"ready": [True, False, True]}, ALL, [6, WEST, 7]),
        # An enemy that cannot be hit is no target, and a dead agent has its no-op.
        ("nearest", {"hittable": [[False, True]] * 3}, mask({STOP, 6, 7}, {NOOP}, {STOP, 6}),
         [7, NOOP, STOP]),
        # Nobody within reach: towards the enemy in sight, or else to the camp.
        ("nearest", {}, mask({STOP, EAST, WEST}, {STOP, WEST}, {STOP}), [EAST, STOP, STOP]),
        ("nearest", {"enemy_life": [0.0, 0.0], "camp": [-9.0, 0.0]}, ALL, [WEST, WEST, 7]),
        # A healer without a patient stays near the others.
        ("nearest", {"hurt": [False] * 3, "x": [0.0, 1.0, 8.0]}, ALL, [6, 6, WEST]),
    ],
)  # fmt: skip
def test_scripts_choose_the_actions_that_their_descriptions_say(name, changes, avail, expected):
    action = make_script(ENV, name).act(jax.random.key(0), field(**changes), avail)
    assert action.tolist() == expected


def test_random_takes_every_available_action_and_no_other():
    script = make_script(ENV, "random").act
    keys = jax.random.split(jax.random.key(0), 200)
    actions = jax.vmap(lambda key: script(key, None, ALL))(keys)
    assert set(np.asarray(actions).ravel().tolist()) == {STOP, EAST, WEST, 6, 7}


def test_an_unknown_script_and_one_for_battles_elsewhere_are_refused():
    with pytest.raises(UserError, match=r"unknown script 'kites'; did you mean 'kite'\?"):
        make_script(ENV, "kites")
    lbf = registry.make_env("lbf:Foraging-5x5-2p-1f-coop-v2")
    with pytest.raises(UserError, match="nearest: is a script for battles, such as skirmish:3m"):
        make_script(lbf, "nearest")
    assert set(SCRIPTS) == {"focus-fire", "nearest", "kite", "random"}


def test_scripts_that_fight_beat_random_actions():
    results = {}
    for name in ("focus-fire", "random"):
        script = make_script(ENV, name)
        results[name], measured = jax.jit(
            lambda key, script=script: play(ENV, script, key, 64, lambda s: {"hp": s.hp})
        )(jax.random.key(0))
        dead = (np.asarray(measured["hp"]) <= 0).reshape(64, 2, 3).all(2).any(1)
        assert (dead | (np.asarray(results[name].lengths) == 60)).all()
    won = {name: float(result.wins.mean()) for name, result in results.items()}
    assert won["random"] < 0.2
    assert won["focus-fire"] > won["random"] + 0.3


def test_the_camp_of_enemies_that_start_anywhere_is_their_living_ones_mean():
    env = registry.make_env("skirmish:3m", start="random")
    state, _ = env.reset(jax.random.key(0))
    enemies = np.arange(len(state.hp))[env.battle.side(True)]
    state = state._replace(hp=jnp.asarray(state.hp).at[enemies[0]].set(0.0))
    places = np.stack([state.x, state.y])[:, enemies[1:]]
    np.testing.assert_allclose(env.battlefield(state).camp, places.mean(1), rtol=1e-6)


# --- Host environments --------------------------------------------------------------------------


def test_units_of_smac_and_of_smaclite_are_read():
    spec = Spec("fake", 2, 1, 1, (FIRST_TARGET + 2,) * 2, 9, "common")
    place = SimpleNamespace(x=1.0, y=2.0)
    medivac = SimpleNamespace(
        pos=place, health=5, health_max=9, shield=0, weapon_cooldown=3, unit_type=7
    )
    flying = SimpleNamespace(pos=(3, 4), hp=6, max_hp=6, shield=2, plane="air", valid_targets=())
    ground = SimpleNamespace(
        pos=(1, 1), hp=1, max_hp=1, cooldown=0, valid_targets=("ground",), plane="ground",
        combat_type=SimpleNamespace(name="DAMAGE"),
    )  # fmt: skip
    found = read_battlefield(
        spec, SimpleNamespace(agents={0: medivac}, enemies={1: flying}, medivac_id=7)
    )
    assert found.heals.tolist() == [True, False]
    assert found.hurt.tolist() == [True, False]
    assert found.ready.tolist() == [False, True]
    assert (found.x[0], found.y[0], found.life[0]) == (1.0, 2.0, 5.0)
    assert found.enemy_life.tolist() == [0.0, 8.0]
    assert found.hittable.tolist() == [[False, True], [False, False]]
    found = read_battlefield(spec, SimpleNamespace(agents={0: ground}, enemies={0: flying}))
    assert not found.hittable.any()
    assert not found.heals.any()
    with pytest.raises(UserError, match="fake: does not show its units"):
        read_battlefield(spec, SimpleNamespace())


def test_a_host_environment_is_played_episode_by_episode():
    env = registry.make_env("fake_smac:make")
    played = play_host(env, make_script(env, "random"), jax.random.key(0), 5)
    again = play_host(env, make_script(env, "random"), jax.random.key(0), 5)
    for one, other in zip(played, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (played.lengths >= 1).all()
    assert set(np.asarray(played.wins).tolist()) <= {0.0, 1.0}
    with pytest.raises(UserError, match="fake_smac:make: does not show its units"):
        play_host(env, make_script(env, "nearest"), jax.random.key(0), 1)


# --- The command --------------------------------------------------------------------------------


def test_a_baseline_is_evaluated_with_its_win_rate_and_interval(capsys):
    command = ["evaluate", "--policy", "focus-fire", "--env", "skirmish:3m", "--env-option",
               "start=jittered", "--episodes", "8"]  # fmt: skip
    assert main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["policy"] == "focus-fire"
    assert facts["rules"]["start"] == "jittered"
    (row,) = facts["seeds"]
    low, high = row["win_rate_interval"]
    assert 0 <= low <= row["win_rate"] <= high <= 1
    assert high > low
    assert main(command) == 0
    assert f"{row['win_rate']:.3f} [{low:.3f}, {high:.3f}]" in capsys.readouterr().out


def test_random_play_needs_no_battle(capsys):
    command = ["evaluate", "--policy", "random", "--env", "matrix:climbing", "--episodes", "4"]
    assert main([*command, "--json"]) == 0
    assert "win_rate" not in json.loads(capsys.readouterr().out)["seeds"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected DIR, the run's folder, or --policy and --env"),
        (["--policy", "kite"], "--policy: needs one --env"),
        (["--policy", "kite", "--env", "skirmish:3m", "--greedy"], "--greedy: is for a run"),
        (["--policy", "kits", "--env", "skirmish:3m"], "did you mean 'kite'"),
        (["run", "--policy", "kite", "--env", "skirmish:3m"], "exclude each other"),
        (["run", "--env-option", "start=map"], "--env-option: is for --policy"),
    ],
)
def test_contradictory_flags_are_refused(capsys, words, message):
    assert main(["evaluate", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_runs_table_begins_with_win_rates_where_there_is_a_winner():
    def entry(seed, **absolute):
        last = {"return": 1.0, "step": 10}
        return {"seed": seed, "final": last, "best": last, "absolute": {"return": 1.0, **absolute}}

    common = {
        "algo": "mappo", "env": "skirmish:3m", "steps": 10, "wall_seconds": 1.0,
        "steps_per_second": 10.0, "compile_seconds": 1.0,
        "iqm": {"final": 1.0, "best": 1.0, "absolute": 1.0},
        "mean": {"final": 1.0, "best": 1.0, "absolute": 1.0},
    }  # fmt: skip
    table = final_table(common | {"seeds": [entry(0, win_rate=0.25), entry(1, win_rate=0.75)]})
    assert [column.header for column in table.columns][:2] == ["seed", "absolute win rate"]
    assert list(table.columns[1].cells) == ["0.250", "0.750", "0.500", "0.500"]
    table = final_table(common | {"seeds": [entry(0, win_rate=float("nan")), entry(1)]})
    assert "absolute win rate" not in [column.header for column in table.columns]
