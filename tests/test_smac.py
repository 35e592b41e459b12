"""Environments with SMAC's interface: masks, `alive`, ends of episodes, wins."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fake_smac
import probes
from fake_smac import ADVANCE, ATTACK, NOOP, STOP
from perla.algos.create import create
from perla.cli import main
from perla.envs.bridges import smac
from perla.envs.processes.pool import first_observation, sample_actions, seconds_per_step
from perla.envs.protocol import HostEnv
from perla.envs.registry import make_env
from perla.errors import UserError
from perla.loops.evaluate import evaluate
from perla.loops.seeds import evaluation_metrics, measured
from perla.methods.recipes import make as make_config

pytestmark = pytest.mark.xdist_group("host")

MAPS = {
    # map: agents, limit, actions, obs, state without last actions, with them
    "2m_vs_1z": (2, 150, 7, 16, 12, 26),
    "2s_vs_1sc": (2, 300, 7, 17, 13, 27),
    "so_many_baneling": (7, 100, 38, 202, 131, 397),
    "bane_vs_bane": (24, 200, 30, 336, 264, 984),
    "1c3s5z": (9, 180, 15, 162, 135, 270),
    "2s3z": (5, 120, 11, 80, 65, 120),
    "3m": (3, 60, 9, 30, 21, 48),
    "8m": (8, 120, 14, 80, 56, 168),
    "MMM": (10, 150, 16, 160, 130, 290),
    "2c_vs_64zg": (2, 400, 70, 332, 202, 342),
    "3s5z": (8, 150, 14, 128, 104, 216),
    "25m": (25, 150, 31, 250, 175, 950),
    "3s5z_vs_3s6z": (8, 170, 15, 136, 110, 230),
    "MMM2": (10, 180, 18, 176, 142, 322),
    "corridor": (6, 400, 30, 156, 102, 282),
}


def fake_env(kind="skirmish", **options):
    return make_env("fake_smac:make", kind=kind, **options)


def play(env, *actions, seed=0):
    env.reset(seed)
    return [env.step(np.array(action, np.int32)) for action in actions]


# What the interface says becomes what learners ask for.


def test_the_facts_of_an_environment():
    env = fake_env()
    spec = env.spec
    assert isinstance(env, HostEnv)
    assert (spec.agents, spec.obs, spec.state, spec.limit) == (2, 6, 7, 8)
    assert spec.actions == (5, 5)
    assert spec.reward == "common"
    assert spec.mortal
    assert not spec.continuous
    assert spec.id == "fake_smac:make"
    assert spec.rules == {"kind": "skirmish", "seeded": "every episode"}
    first_observation(env)


def test_masks_are_the_environments_own():
    env = fake_env(lives=(1, 2))
    seen = env.reset(0)
    np.testing.assert_array_equal(seen.avail, [[0, 1, 1, 0, 0]] * 2)
    step, after = play(env, (ADVANCE, STOP), (ATTACK, STOP))
    np.testing.assert_array_equal(step.final.avail, [[0, 1, 0, 1, 1], [0, 1, 1, 0, 0]])
    # Who has fallen cannot be attacked any more, nor can the unit that stood alone act.
    np.testing.assert_array_equal(after.final.avail, [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0]])


def test_observations_and_states_are_the_environments_own():
    env, theirs = fake_env(), fake_smac.Skirmish()
    theirs.reset(seed=3)
    (step,) = play(env, (ADVANCE, ADVANCE), seed=3)
    theirs.step([ADVANCE, ADVANCE])
    for seen in (step.observation, step.final):
        np.testing.assert_array_equal(seen.obs, np.float32(theirs.get_obs()))
        np.testing.assert_array_equal(seen.state, np.float32(theirs.get_state()))
        assert seen.obs.dtype == seen.state.dtype == np.float32
        assert seen.avail.dtype == bool


def test_who_can_only_do_nothing_is_dead():
    steps = play(fake_env(lives=(2, 2)), (ADVANCE, STOP), (STOP, STOP), (NOOP, ADVANCE))
    assert [step.final.alive.tolist() for step in steps] == [
        [True, True], [False, True], [False, True],
    ]  # fmt: skip
    assert not steps[1].final.obs[0].any()


def test_the_team_earns_together():
    _, one, two = play(
        fake_env(lives=(2, 2)), (ADVANCE, ADVANCE), (ATTACK, ATTACK), (NOOP, ATTACK + 1)
    )
    np.testing.assert_array_equal(one.reward, [2.0, 2.0])
    np.testing.assert_array_equal(two.reward, [1.0, 1.0])
    assert one.reward.dtype == np.float32


def test_a_battle_that_is_won_has_terminated():
    *_, last = play(fake_env(lives=(1, 1)), (ADVANCE, ADVANCE), (ATTACK, ATTACK + 1))
    assert (last.terminated, last.truncated, last.won) == (True, False, 1.0)
    np.testing.assert_array_equal(last.reward, [2.0 + fake_smac.WIN] * 2)


def test_a_battle_that_is_lost_has_terminated():
    steps = play(fake_env(lives=(2, 2)), (ADVANCE, ADVANCE), (STOP, STOP), (NOOP, STOP))
    assert [step.terminated.item() for step in steps] == [False, False, True]
    assert [step.won for step in steps] == [0, 0, 0]
    assert not steps[-1].final.alive.any()


@pytest.mark.parametrize("kind", ["skirmish", "modern"])
def test_a_battle_that_is_cut_was_truncated(kind):
    steps = play(fake_env(kind), *[(STOP, STOP)] * 8)
    assert [step.truncated.item() for step in steps] == [False] * 7 + [True]
    assert not any(step.terminated for step in steps)
    assert steps[-1].won == 0


@pytest.mark.parametrize("kind", ["skirmish", "modern"])
def test_a_battle_that_is_won_at_the_last_moment_was_not_cut(kind):
    actions = [(STOP, STOP)] * 6 + [(ADVANCE, ADVANCE), (ATTACK, ATTACK + 1)]
    last = play(fake_env(kind, lives=(1, 1)), *actions)[-1]
    assert (last.terminated, last.truncated, last.won) == (True, False, 1.0)


def test_an_environment_that_calls_its_limit_an_end_is_believed():
    last = play(fake_env(continuing_episode=False), *[(STOP, STOP)] * 8)[-1]
    assert (last.terminated, last.truncated) == (True, False)


def test_an_environment_that_knows_of_no_battle_does_not_say_who_won():
    *_, last = play(fake_env("silent", lives=(1, 1)), (ADVANCE, ADVANCE), (ATTACK, ATTACK + 1))
    assert last.terminated
    assert last.won is None


def test_all_chance_of_an_episode_follows_from_its_seed():
    one, other = fake_env(), fake_env()
    other.reset(9)
    states = [one.reset(seed).state.tolist() for seed in range(8)]
    assert states == [other.reset(seed).state.tolist() for seed in range(8)]
    assert len({tuple(state) for state in states}) > 1


def test_an_environment_that_takes_no_seed_is_stamped():
    env = fake_env("unseeded")
    assert env.spec.rules["seeded"] == "never"
    np.testing.assert_array_equal(env.reset(0).state, env.reset(1).state)


def test_pictures_are_the_environments_own():
    env = fake_env()
    play(env, (STOP, STOP))
    assert env.render().shape == (8, 8, 3)
    assert env.render().max() == 20


def test_closing_lets_go_of_the_environment():
    env = fake_env()
    env.close()
    assert env.env.closed


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("blind", r"fake_smac:make returns .* MultiAgentEnv, which lacks get_env_info$"),
        ("vague", "get_env_info lacks state_shape, episode_limit"),
    ],
)
def test_an_environment_that_lacks_something_ends_in_a_line(kind, message):
    with pytest.raises(UserError, match=message):
        fake_env(kind)


def test_an_environment_without_a_picture_says_so_in_a_line():
    env = smac.SMAC("mine", fake_smac.Skirmish(), {})
    env.env = fake_smac.Blind()
    with pytest.raises(UserError, match=r"mine: cannot be drawn here \(NotImplementedError"):
        env.render()


# StarCraft II, SMACv2 and SMAClite.


@pytest.fixture
def installed(monkeypatch, tmp_path):
    fake_smac.install(monkeypatch, tmp_path)
    return tmp_path


def test_options_reach_the_constructor_and_are_stamped(installed):
    env = make_env("smac:3m", difficulty=7, reward_scale=False)
    assert (env.env.map_name, env.env.difficulty, env.env.reward_scale) == ("3m", "7", False)
    assert env.spec.rules == {
        "map_name": "3m", "difficulty": "7", "reward_scale": False, "smac": "unknown",
        "game": "Base75689", "seeded": "first episode",
    }  # fmt: skip
    assert env.spec.id == "smac:3m"
    drawn = make_env("smac:v2-10gen_zerg").spec.rules["seeded"]
    assert drawn == "first episode, but its teams and places"


def test_starcraft_is_told_to_say_where_it_cuts(installed):
    assert play(make_env("smac:3m"), *[(STOP, STOP)] * 8)[-1].truncated
    assert play(make_env("smac:v2-10gen_zerg"), *[(STOP, STOP)] * 8)[-1].truncated


def test_starcraft_is_started_with_the_first_seed_and_goes_on_from_there(installed):
    def states(*seeds):
        env = make_env("smac:3m")
        return [env.reset(seed).state.tolist() for seed in seeds]

    many = states(*range(1, 9))
    assert many == states(1, *[0] * 7)
    assert many != states(2, *[0] * 7)


def test_an_episode_that_the_game_broke_off_is_a_fault_and_no_end(installed):
    with pytest.raises(RuntimeError, match="StarCraft II failed"):
        play(make_env("smac:3m", start="break"), (STOP, STOP), (STOP, STOP))


def test_a_game_that_does_not_start_is_told_in_a_line(installed):
    message = r"^smac:3m: StarCraft II does not start \(ConnectionError: no answer\)$"
    with pytest.raises(UserError, match=message):
        make_env("smac:3m", start="ill").reset(0)


def test_smacv2_draws_the_published_teams(installed):
    env = make_env("smac:v2-10gen_terran", units=6, enemies=7, difficulty="8")
    env.reset(0)
    assert env.env.capability == {
        "n_units": 6, "n_enemies": 7, "written": True,
        "team_gen": {
            "dist_type": "weighted_teams", "observe": True,
            "unit_types": ["marine", "marauder", "medivac"], "weights": [0.45, 0.45, 0.1],
            "exception_unit_types": ["medivac"],
        },
        "start_positions": {
            "dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32,
        },
    }  # fmt: skip
    assert env.env.difficulty == "8"
    rules = env.spec.rules
    assert (rules["units"], rules["enemies"], rules["obs_own_pos"]) == (6, 7, True)
    assert make_env("smac:v2-10gen_zerg").spec.rules["enemies"] == 5


def test_smaclite_is_cut_where_smac_cuts(installed):
    assert make_env("smac:lite-2s3z").spec.limit == 120
    env = make_env("smac:lite-2s3z", limit=3, use_cpp_rvo2=True)
    assert env.env.use_cpp_rvo2
    assert env.spec.rules == {
        "map_name": "2s3z", "limit": 3, "use_cpp_rvo2": True, "smaclite": "unknown",
        "seeded": "every episode",
    }  # fmt: skip
    assert [step.truncated.item() for step in play(env, *[(STOP, STOP)] * 3)] == [
        False, False, True,
    ]  # fmt: skip


def test_smaclite_begins_without_the_last_actions_of_another_episode(installed):
    env = make_env("smac:lite-2s3z")
    (step,) = play(env, (STOP, STOP))
    assert step.final.state[7:].any()
    assert not env.reset(0).state[7:].any()


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        ("smac:3z", {}, "unknown map of SMAC '3z'; did you mean '3s5z'"),
        ("smac:10gen_zerg", {}, "10gen_zerg is a map of SMACv2: smac:v2-10gen_zerg"),
        ("smac:v2-10gen_zergs", {}, "unknown map of SMACv2 .*did you mean '10gen_zerg'"),
        ("smac:lite-2s2z", {}, "unknown map of SMAClite '2s2z'; did you mean '2s3z'"),
        ("smac:3m", {"dificulty": 7}, "unknown option of smac:3m 'dificulty'.*'difficulty'"),
        ("smac:3m", {"seed": 1}, "unknown option of smac:3m 'seed'"),
        ("smac:3m", {"continuing_episode": True}, "unknown option .*'continuing_episode'"),
        ("smac:v2-10gen_zerg", {"unit": 3}, "unknown option .*did you mean 'units'"),
        ("smac:v2-10gen_zerg", {"units": 0}, "units 0 is not a whole number of 1 or more"),
        ("smac:lite-2s3z", {"limit": 1.5}, "limit 1.5 is not a whole number of 1 or more"),
        ("smac:lite-2s3z", {"difficulty": 7}, "unknown option of smac:lite-2s3z 'difficulty'"),
        ("3s5z", {}, "has no family; did you mean .*'smac:3s5z'"),
    ],
)
def test_mistakes_end_in_a_line(installed, id, options, message):
    with pytest.raises(UserError, match=message):
        make_env(id, **options)


@pytest.mark.parametrize(
    ("id", "package", "hint"),
    [
        ("smac:3m", "smac", "oxwhirl/smac.git"),
        ("smac:v2-10gen_zerg", "smacv2", "oxwhirl/smacv2.git"),
        ("smac:lite-2s3z", "smaclite", "uoe-agents/smaclite.git"),
    ],
)
def test_a_missing_package_is_told_in_a_line(monkeypatch, capsys, id, package, hint):
    monkeypatch.setitem(sys.modules, f"{package}.env", None)
    assert main(["train", "--env", id]) == 2
    error = capsys.readouterr().err
    assert f"{id} needs {package}" in error
    assert hint in error
    assert error.count("\n") == 1


def test_a_package_that_cannot_be_imported_is_told_in_a_line(monkeypatch):
    def fails(module):
        raise TypeError("too\nnew")

    monkeypatch.setattr(smac.importlib, "import_module", fails)
    with pytest.raises(UserError, match=r"^smac:3m needs smac \(TypeError: too new\); pip install"):
        smac.make_env("3m")


def test_a_missing_game_is_told_in_a_line(installed, monkeypatch, capsys):
    for lack, message in (("Maps/SMAC_Maps", "SMAC_Maps.zip"), ("Versions", "set SC2PATH")):
        (installed / lack).rename(installed / lack.replace("/", "-").lower())
        assert main(["train", "--env", "smac:3m"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert str(installed) in error
        assert error.count("\n") == 1
    # By default it is looked for where PySC2 looks for it.
    monkeypatch.delenv("SC2PATH")
    monkeypatch.setenv("HOME", str(installed))
    with pytest.raises(UserError, match=str(installed / "StarCraftII")):
        make_env("smac:3m")


def test_the_maps_are_known(capsys):
    assert set(smac.EXAMPLES) == set(MAPS)
    for name, limit in smac.LIMITS.items():
        assert name not in MAPS or MAPS[name][1] == limit
    assert main(["list", "envs"]) == 0
    listed = capsys.readouterr().out
    assert all(f"smac:{name} " in listed for name in MAPS)


@pytest.mark.parametrize("name", MAPS)
def test_the_facts_of_the_maps(name, monkeypatch, tmp_path):
    pytest.importorskip("smac.env", reason="SMAC is not installed")
    for path in ("Versions/Base0", "Maps/SMAC_Maps"):  # which nothing is started from
        (tmp_path / path).mkdir(parents=True)
    monkeypatch.setenv("SC2PATH", str(tmp_path))
    for last, state in zip((False, True), MAPS[name][4:], strict=True):
        spec = make_env(f"smac:{name}", state_last_action=last).spec
        facts = (spec.agents, spec.limit, spec.actions[0], spec.obs)
        assert (*facts, spec.state) == (*MAPS[name][:4], state)


@pytest.mark.parametrize("name", smac.LIMITS)
def test_smaclites_own_maps(name):
    pytest.importorskip("smaclite.env", reason="SMAClite is not installed")
    env = make_env(f"smac:lite-{name}")
    first_observation(env)
    if name in MAPS:
        spec = env.spec
        facts = (spec.agents, spec.limit, spec.actions[0], spec.obs, spec.state)
        assert facts == (*MAPS[name][:4], MAPS[name][5])
    env.close()


# Evaluations, and the whole way.


def test_random_actions_are_legal():
    avail = np.array([[[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]]] * 500, bool)
    drawn = sample_actions(fake_env().spec, np.random.default_rng(0), avail)
    assert drawn.shape == (500, 2)
    assert np.take_along_axis(avail, drawn[..., None], -1).all()
    assert set(drawn[:, 0]) == {1, 3, 4}
    assert seconds_per_step(fake_env(), 40) > 0


def test_the_bridge_imports_no_jax():
    code = "import sys, perla.envs.bridges.smac; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class Contest:
    """`probes.PATIENCE`, which is won where it earns anything."""

    spec, reset = probes.PATIENCE.spec, probes.PATIENCE.reset

    def step(self, key, state, action):
        state, timestep = probes.PATIENCE.step(key, state, action)
        return state, timestep._replace(won=timestep.reward[0])

    def render(self, state):
        raise AssertionError("nothing draws this environment")


def test_environments_in_jax_may_say_who_won_as_well():
    actor = (
        create(make_config("ippo", hidden_size=8, num_layers=1), Contest.spec)
        .init(jax.random.key(0))
        .actor
    )
    greedy = jnp.arange(60) < 20
    played = evaluate(Contest(), actor, jax.random.key(1), greedy)
    assert 0 < played.wins.sum() < 60
    np.testing.assert_array_equal(played.wins, played.returns)
    rates = measured(evaluation_metrics(played, 20))
    assert rates["win_rate"] == pytest.approx(played.wins[:20].mean())
    assert rates["win_rate_sampled"] == pytest.approx(played.wins[20:].mean())
    played = evaluate(probes.PATIENCE, actor, jax.random.key(1), greedy)
    silent = measured(evaluation_metrics(played, 20))
    assert silent == {name: value for name, value in rates.items() if "win" not in name}


@pytest.mark.slow
def test_train_tells_how_often_it_won(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PERLA_CORES", "2")
    out = tmp_path / "run"
    arguments = [
        *("perla-mappo", "--env", "fake_smac:make", "--env-option", "limit=7", "--steps", "12000"),
        *(
            "--num-envs",
            "16",
            "--rollout-length",
            "14",
            "--hidden-size",
            "32",
            "--lr",
            "3e-3",
            "--actor-network",
            "mlp",
        ),
        *("--num-evaluations", "2", "--eval-episodes", "8", "--absolute-episodes", "16"),
    ]
    assert main(["train", *arguments, "--quiet", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    won = [row["win_rate"] for row in rows]
    assert all(0 <= rate <= 1 for rate in won)
    assert won[-1] > won[0]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["seeds"][0]["absolute"]["win_rate"] > 0.5
    assert '"limit":7' in (out / "config.json").read_text().replace(" ", "")
    assert (out / "replay.gif").exists()
    capsys.readouterr()
    assert main(["evaluate", str(out), "--episodes", "5", "--trust"]) == 0
    assert "won" in capsys.readouterr().out
