"""Multi-agent MuJoCo: equal to the original of gymnasium-robotics, to the bit."""

import os
import sys
from contextlib import closing

import numpy as np
import pytest

from perla.cli import main
from perla.envs.bridges import mujoco
from perla.envs.processes.pool import Pool, first_observation
from perla.envs.registry import env_factory, make_env
from perla.errors import UserError
from perla.plugins import install_command

mamujoco_v1 = pytest.importorskip("gymnasium_robotics").mamujoco_v1

ENVIRONMENTS = [
    ("Hopper-3x1", 0),
    ("Hopper-3x1", 1),
    ("Hopper-3x1", 2),
    ("Swimmer-2x1", 1),
    ("Walker2d-2x3", 1),
    ("Humanoid-9|8", 1),  # agents with unequal joints, bounds of ±0.4
    ("Ant-2x4d", 0),
    ("Reacher-2x1", 1),  # an episode of 50 steps
]

FACTS = {
    "Hopper-3x1": (3, 9, 11, (1, 1, 1), 1000),
    "Swimmer-2x1": (2, 6, 8, (1, 1), 1000),
    "Walker2d-2x3": (2, 12, 17, (3, 3), 1000),
    "Pusher-3p": (3, 16, 23, (3, 1, 3), 100),
}


@pytest.mark.parametrize("name", FACTS)
def test_the_facts_of_an_environment(name):
    spec = make_env(f"mamujoco:{name}").spec
    assert (spec.agents, spec.obs, spec.state, spec.actions, spec.limit) == FACTS[name]
    assert spec.continuous
    assert spec.id == f"mamujoco:{name}"
    assert spec.rules["agent_obsk"] == 1
    assert spec.rules["mujoco"]


@pytest.mark.parametrize(("name", "agent_obsk"), ENVIRONMENTS)
def test_side_by_side_with_the_original(name, agent_obsk):
    env = make_env(f"mamujoco:{name}", agent_obsk=agent_obsk)
    scenario, _, factorisation = name.partition("-")
    original = mamujoco_v1.parallel_env(scenario, factorisation, agent_obsk=agent_obsk)
    spec, agents = env.spec, original.possible_agents
    random = np.random.default_rng(0)
    first_observation(env)
    ends = 0
    for seed in (3, 4):
        seen, _ = original.reset(seed=seed)
        check(env.reset(seed), seen, original, spec)
        for time in range(1, spec.limit + 1):
            action = random.uniform(-1, 1, (spec.agents, spec.max_actions)).astype(np.float32)
            actions = {}
            for agent, row in zip(agents, action, strict=True):
                box = original.action_space(agent)
                # The bounds lie evenly around 0, where scaling is one product.
                np.testing.assert_array_equal(box.low, -box.high)
                actions[agent] = row[: len(box.high)] * box.high
            timestep = env.step(action)
            seen, rewards, terminations, truncations, _ = original.step(actions)
            check(timestep.final, seen, original, spec)
            check(timestep.observation, seen, original, spec)
            np.testing.assert_array_equal(
                timestep.reward, np.float32([rewards[agent] for agent in agents])
            )
            for agent in agents:
                assert timestep.terminated == terminations[agent]
                assert timestep.truncated == (truncations[agent] and not terminations[agent])
            if timestep.terminated or timestep.truncated or time == 120:
                ends += bool(timestep.terminated or timestep.truncated)
                break
    assert ends or spec.limit >= 100
    env.close()
    original.close()


def check(observation, seen, original, spec):
    """The original's numbers, then nothing but padding."""
    for i, agent in enumerate(original.possible_agents):
        want = seen[agent].astype(np.float32)
        np.testing.assert_array_equal(observation.obs[i, : len(want)], want)
        assert not observation.obs[i, len(want) :].any()
        np.testing.assert_array_equal(
            observation.avail[i], np.arange(spec.max_actions) < spec.actions[i]
        )
    np.testing.assert_array_equal(observation.state, original.state().astype(np.float32))
    assert observation.alive is None


def test_what_lies_beyond_the_bounds_costs_no_more_than_the_bound():
    name = "mamujoco:Swimmer-2x1"
    env, beyond = make_env(name), np.float32([[[3.0], [-2.0]]])
    env.reset(int(np.random.SeedSequence((5,), spawn_key=(0,)).generate_state(1)[0]) >> 1)
    want = env.step(np.sign(beyond[0]))
    with closing(Pool(env_factory(name), env.spec, [["the only one"]])) as pool:
        pool.reset(0, [(5,)])
        pool.receive(0)
        pool.step(0, beyond)
        have, _ = pool.receive(0)
    np.testing.assert_array_equal(have.reward[0], want.reward)
    np.testing.assert_array_equal(have.final.obs[0], want.final.obs)


def test_all_copies_order_their_features_alike():
    """In the library some of Pusher's do not: its joints' order is drawn for each."""
    seen = [make_env("mamujoco:Pusher-3p").reset(3).obs for _ in range(6)]
    for other in seen[1:]:
        np.testing.assert_array_equal(other, seen[0])


def test_an_episode_is_truncated_at_its_limit_and_not_terminated():
    env = make_env("mamujoco:Reacher-2x1")
    env.reset(0)
    ends = [env.step(np.zeros((2, 1), np.float32))[2:4] for _ in range(50)]
    assert [bool(t) for _, t in ends] == [False] * 49 + [True]
    assert not any(t for t, _ in ends)


def test_options_reach_the_task():
    plain, keen = (make_env("mamujoco:Swimmer-2x1", **options) for options in
                   ({}, {"forward_reward_weight": 3.0, "ctrl_cost_weight": 0.0}))  # fmt: skip
    action = np.full((2, 1), 0.5, np.float32)
    for env in (plain, keen):
        env.reset(1)
    assert keen.spec.rules["forward_reward_weight"] == 3.0
    cost = 1e-4 * 2 * 0.25
    assert keen.step(action).reward[0] == pytest.approx(3 * (plain.step(action).reward[0] + cost))


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        ("mamujoco:Hoper-3x1", {}, "did you mean 'Hopper'"),
        ("mamujoco:Hopper-3x2", {}, "unknown factorisation '3x2' of Hopper; known: Hopper-3x1"),
        ("mamujoco:Hopper-3x1", {"agent_obsk": -1}, "agent_obsk -1 is not a whole number"),
        ("mamujoco:Hopper-3x1", {"agent_obsk": "far"}, "agent_obsk 'far' is not a whole number"),
        ("mamujoco:Hopper-3x1", {"gravity": 1.0}, "unknown option 'gravity'"),
        ("mamujoco:Hopper-3x1", {"render_mode": "human"}, "Hopper-3x1: render_mode is no option"),
        ("mamujoco:Hopper-3x1", {"agent_conf": "3x1"}, "Hopper-3x1: agent_conf is no option"),
        ("mamujoco:Hopper-3x1", {"scenario": "Ant"}, "Hopper-3x1: scenario is no option"),
        (
            "mamujoco:Hopper-3x1",
            {"frame_skip": "two"},
            "frame_skip = 'two': expected a whole number",
        ),
        ("Hopper-3x1", {}, "has no family; did you mean 'mamujoco:Hopper-3x1'"),
    ],
)
def test_mistakes_end_in_a_line(id, options, message):
    with pytest.raises(UserError, match=message):
        make_env(id, **options)


def test_a_missing_extra_is_told_in_a_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    assert main(["train", "--env", "mamujoco:Hopper-3x1"]) == 2
    error = capsys.readouterr().err
    assert install_command("mujoco") in error
    assert error.count("\n") == 1


def test_pictures_without_a_display(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    env = make_env("mamujoco:Hopper-3x1")
    env.reset(0)
    try:
        picture = env.render()
    except UserError as error:  # EGL and OSMesa are the system's, and not every system's.
        if "cannot draw here" not in str(error):
            raise
        pytest.skip(str(error))
    assert picture.shape == (480, 480, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_nothing_can_be_drawn_a_line_says_so(monkeypatch):
    blind = make_env("mamujoco:Hopper-3x1")
    blind.reset(0)
    monkeypatch.setenv("MUJOCO_GL", "nothing")
    with pytest.raises(UserError, match="cannot draw here with MUJOCO_GL=nothing"):
        blind.render()
    assert os.environ["MUJOCO_GL"] == "nothing"


def test_every_example_can_be_made():
    for name in mujoco.EXAMPLES:
        first_observation(make_env(f"mamujoco:{name}"))
