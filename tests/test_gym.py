"""The bridge to Gymnasium: multi-agent environments equal the registered originals."""

import sys

import gymnasium
import lbforaging  # noqa: F401  It registers its environments.
import numpy as np
import pytest
import rware  # noqa: F401  So does this.
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Sequence, Tuple

from marks import slow
from perla.analysis.load import load
from perla.analysis.stats import interval
from perla.cli import main
from perla.envs.bridges.gym import Gym
from perla.envs.processes.pool import first_observation, sample_actions
from perla.envs.registry import env_factory, make_env
from perla.errors import UserError
from perla.loops.host import Trainer
from perla.methods import recipes
from perla.plugins import install_command

LBF = "gym:lbforaging:Foraging-5x5-2p-1f-coop-v3"
RWARE = "gym:rware:rware-tiny-2ag-v2"
SMALL = {"num_envs": 2, "rollout_length": 8, "hidden_size": 8, "num_layers": 1, "update_epochs": 1}


class Team(gymnasium.Env):
    """Two agents of unequal size, who see the time; it ends as it is told to."""

    def __init__(self, seen=None, done=None, *, end=(0, False, False), rewards=(1.0, 2.0), **info):
        self.observation_space = seen or Tuple((Box(-9, 9, (2, 2)), Discrete(3)))
        self.action_space = done or Tuple((Discrete(2), Discrete(4, start=5)))
        self.end, self.rewards, self.info, self.actions = end, rewards, info, []
        self.max_steps = 4

    def see(self):
        return np.full((2, 2), self.time, np.float32), self.time % 3

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self.see(), self.info

    def step(self, action):
        self.time += 1
        self.actions.append(action)
        at, terminated, truncated = self.end
        now = self.time == at
        return self.see(), self.rewards, now and terminated, now and truncated, self.info


def play(bridge, actions=None):
    """The time steps of one episode."""
    bridge.reset(0)
    steps = []
    while not steps or not (steps[-1].terminated or steps[-1].truncated):
        steps.append(bridge.step(np.zeros(2, np.int32) if actions is None else actions))
    return steps


# --- Environments of other libraries ------------------------------------------------------------


@pytest.mark.parametrize(("id", "facts"), [
    (LBF, (2, 9, 18, (6, 6), 50)),
    (RWARE, (2, 71, 142, (5, 5), 500)),
])  # fmt: skip
def test_the_facts_of_an_environment(id, facts):
    spec = make_env(id).spec
    assert (spec.agents, spec.obs, spec.state, spec.actions, spec.limit) == facts
    assert (spec.id, spec.reward, spec.continuous, spec.mortal) == (id, "individual", False, False)
    assert spec.rules["gymnasium"] == gymnasium.__version__
    assert spec.rules[id.split(":")[1]] == "2.0.0"


@pytest.mark.parametrize("id", [LBF, RWARE])
def test_side_by_side_with_the_original(id):
    bridge, original = make_env(id), gymnasium.make(id.split(":")[2], disable_env_checker=True)
    random = np.random.default_rng(0)
    first_observation(bridge)
    earned = False
    for seed in range(30 if id == LBF else 2):
        seen, _ = original.reset(seed=seed)
        observation = bridge.reset(seed)
        for time in range(1, bridge.spec.limit + 1):
            np.testing.assert_array_equal(observation.obs, np.stack(seen))
            np.testing.assert_array_equal(observation.state, np.concatenate(seen))
            assert observation.avail.all()
            assert observation.alive is None
            action = sample_actions(bridge.spec, random, observation.avail)
            seen, rewards, done, _, _ = original.step(tuple(int(a) for a in action))
            timestep = bridge.step(action)
            observation = timestep.observation
            np.testing.assert_array_equal(timestep.reward, np.float32(rewards))
            assert bool(timestep.terminated | timestep.truncated) == done
            earned |= any(rewards)
            if done:
                np.testing.assert_array_equal(timestep.final.obs, np.stack(seen))
                # Theirs says `done` at the limit, too; ours tells the two apart.
                gone = id == LBF and original.unwrapped.field.sum() == 0
                assert timestep.terminated == gone
                assert timestep.truncated == (not gone)
                assert gone or time == bridge.spec.limit
                break
    assert earned == (id == LBF)


def test_what_ends_at_the_last_step_for_a_reason_of_its_own_has_terminated():
    bridge = make_env(LBF)
    bridge.reset(0)
    for _ in range(49):
        bridge.step(np.zeros(2, np.int32))
    bridge.env.unwrapped.field[:] = 0
    timestep = bridge.step(np.zeros(2, np.int32))
    assert (timestep.terminated, timestep.truncated) == (True, False)


@pytest.mark.parametrize("id", [LBF, RWARE])
@pytest.mark.parametrize("limit", [7, 520])
def test_the_limit_can_be_chosen(id, limit):
    steps = play(make_env(id, limit=limit))
    assert len(steps) == limit
    assert (steps[-1].terminated, steps[-1].truncated) == (False, True)


def test_it_is_the_same_problem_as_our_own_foraging():
    theirs, ours = (
        make_env(LBF, reward="common").spec,
        make_env(LBF.replace("gym:lbforaging", "lbf")).spec,
    )
    for name in ("agents", "obs", "state", "actions", "limit", "reward"):
        assert getattr(theirs, name) == getattr(ours, name)
    (common,) = play(Gym("team", Team(), reward="common", limit=1))
    np.testing.assert_array_equal(common.reward, [3, 3])


@pytest.mark.parametrize("id", [LBF, *slow(RWARE)])
def test_it_is_trained_on(id):
    made = env_factory(id, limit=6)
    config = recipes.make("ippo", **SMALL)
    trainer = Trainer(made(), made, config, seeds=(0,), steps=32, eval_episodes=2)
    try:
        population, rows = trainer.advance(trainer.init(), 32)
        assert rows[0]["step"] == 32
        assert np.isfinite(rows[0]["return"])
        assert rows[0]["episode_length"] <= 6
        assert int(population[0].steps) == 32
    finally:
        trainer.close()


# --- Any environment ----------------------------------------------------------------------------


def test_unequal_agents_are_padded_and_masked():
    bridge = Gym("team", Team())
    assert (bridge.spec.obs, bridge.spec.state, bridge.spec.actions) == (4, 7, (2, 4))
    seen = bridge.reset(0)
    np.testing.assert_array_equal(seen.avail, [[1, 1, 0, 0], [1, 1, 1, 1]])
    seen = bridge.step(np.array([1, 2])).observation
    np.testing.assert_array_equal(seen.obs, [[1, 1, 1, 1], [0, 1, 0, 0]])
    np.testing.assert_array_equal(seen.state, [1, 1, 1, 1, 0, 1, 0])
    assert bridge.env.actions == [(1, 7)]  # The other's choices begin with 5.


def test_legal_moves_and_a_state_of_the_environments_own():
    env = Team(action_mask=[[1, 0], np.array([0, 1, 1, 0])])
    env.state = lambda: np.arange(6).reshape(2, 3)
    bridge = Gym("team", env)
    assert bridge.spec.state == 6
    seen = bridge.reset(0)
    np.testing.assert_array_equal(seen.avail, [[1, 0, 0, 0], [0, 1, 1, 0]])
    np.testing.assert_array_equal(seen.state, np.arange(6))
    env.info["action_mask"] = [[1, 1, 1], [1, 1, 1, 1]]
    message = r"agent 0: `action_mask` has shape \(3,\), expected \(2,"
    with pytest.raises(ValueError, match=message):
        bridge.reset(0)


def test_continuous_actions_are_scaled_to_the_bounds():
    env = Team(done=Tuple((Box(np.float32([0, -2]), np.float32([1, 4])), Box(-1, 1, (3, 1)))))
    bridge = Gym("team", env)
    assert bridge.spec.continuous
    assert bridge.spec.actions == (2, 3)
    np.testing.assert_array_equal(bridge.reset(0).avail, [[1, 1, 0], [1, 1, 1]])
    bridge.step(np.array([[-1, 0.5, 9], [-3, 0, 3]], np.float32))
    ((one, other),) = env.actions
    np.testing.assert_allclose(one, [0, 2.5])
    np.testing.assert_array_equal(other, [[-1], [0], [1]])
    assert all(space.contains(a) for space, a in zip(env.action_space, (one, other), strict=True))


def test_parts_of_an_action_are_chosen_at_once():
    bridge = Gym("team", Team(done=Tuple((MultiDiscrete([2, 3]), Discrete(6)))))
    assert bridge.spec.actions == (6, 6)
    for action in range(6):
        bridge.step(np.array([action, 0]))
    assert [tuple(one) for one, _ in bridge.env.actions] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip


def test_ends_and_limits_are_told_apart():
    def last(env, **options):
        steps = play(Gym("team", env, **options))
        return len(steps), bool(steps[-1].terminated), bool(steps[-1].truncated)

    assert last(Team()) == (4, False, True)  # max_steps
    assert last(Team(end=(2, True, False))) == (2, True, False)
    assert last(Team(end=(4, False, True))) == (4, False, True)
    assert last(Team(end=(2, (True, True), (False, False)))) == (2, True, False)
    # An end at the limit is a truncation if the environment keeps its own limit, and a termination
    # if Gymnasium keeps it.
    assert last(Team(end=(4, True, False))) == (4, False, True)
    clock = gymnasium.envs.registration.EnvSpec("Team-v0", Team, max_episode_steps=4)
    env = gymnasium.make(clock, disable_env_checker=True, end=(4, True, False))
    assert last(env) == (4, True, False)
    assert last(Team(end=(2, False, True))) == (2, False, True)
    with pytest.raises(ValueError, match="the episode is terminated for some agents only"):
        play(Gym("team", Team(end=(2, np.array([True, False]), False))))


def test_the_limit_of_a_registered_environment_is_counted_here(monkeypatch):
    monkeypatch.delitem(gymnasium.registry, "Team-v0", raising=False)
    gymnasium.register("Team-v0", Team, max_episode_steps=3, kwargs={"end": (3, True, False)})
    for options, last in (
        ({}, (3, True, False)),
        ({"limit": 2}, (2, False, True)),
        ({"limit": 5, "end": (0, False, False)}, (5, False, True)),
    ):
        steps = play(make_env("gym:Team-v0", **options))
        assert (len(steps), bool(steps[-1].terminated), bool(steps[-1].truncated)) == last


def test_one_reward_for_all_is_asked_for():
    with pytest.raises(ValueError, match="one reward for all agents: --env-option reward=common"):
        play(Gym("team", Team(rewards=1.5)))
    np.testing.assert_array_equal(
        play(Gym("team", Team(rewards=1.5), reward="common"))[0].reward, [1.5, 1.5]
    )


# --- Mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        (
            "gym:lbforagin:Foraging-8x8-2p-2f-coop-v3",
            {},
            "there is no module 'lbforagin'; install it",
        ),
        ("gym:Foraging-8x8-2p-2f-cop-v3", {}, "did you mean 'Foraging-8x8-2p-2f-coop-v3'"),
        ("gym:CartPole-v1", {}, "has one agent: its space is a Box; a multi-agent environment"),
        (LBF, {"limit": 0}, "limit 0: expected"),
        (LBF, {"reward": "team"}, "reward team: expected"),
        (LBF, {"max_episode_steps": 9}, "is no option; the limit is called limit"),
        (LBF, {"colour": 3}, "cannot be made with colour=3: .*unexpected keyword argument"),
        ("rware-tiny-2ag-v2", {}, "has no family; did you mean 'gym:"),
    ],
)
def test_mistakes_end_in_a_line(id, options, message):
    with pytest.raises(UserError, match=message) as told:
        make_env(id, **options)
    assert len(str(told.value)) < 200


@pytest.mark.parametrize(
    ("seen", "done", "message"),
    [
        (
            Tuple((Sequence(Discrete(2)), Discrete(2))),
            None,
            "agent 0 observes Sequence.*no vector of fixed size",
        ),
        (None, Tuple((Box(0, np.inf, (1,)), Box(0, 1, (1,)))), "agent 0 acts by .*finite bounds"),
        (None, Tuple((Discrete(2), Box(0, 1, (1,)))), "learners here need one kind"),
        (None, Tuple((Discrete(2), Dict())), "agent 1 acts by Dict.*need Discrete or float Box"),
        (None, Tuple((Discrete(2),)), "2 observations and 1 actions"),
    ],
)
def test_spaces_that_hold_no_numbers(seen, done, message):
    with pytest.raises(UserError, match=message):
        Gym("team", Team(seen, done))


def test_an_environment_that_says_no_limit_is_asked_for_one():
    env = Team()
    del env.max_steps
    with pytest.raises(UserError, match="--env-option limit=N"):
        Gym("team", env)
    assert Gym("team", env, limit=3).spec.limit == 3


def test_an_environment_without_pictures_says_so():
    with pytest.raises(UserError, match=r"team cannot be drawn here \(NotImplementedError"):
        Gym("team", Team()).render()
    env = Team()
    env.render = lambda: None
    with pytest.raises(UserError, match=r"draws no image; .*render_mode='rgb_array'"):
        Gym("team", env).render()
    env.render = lambda mode: np.full((3, 4, 4), 7.0) if mode == "rgb_array" else None
    picture = Gym("team", env).render()
    assert (picture.shape, picture.dtype) == ((3, 4, 3), np.uint8)


def test_a_missing_extra_is_told_in_a_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert main(["train", "ippo", "--env", LBF]) != 0
    assert f"gymnasium is not installed: {install_command('gym')}" in capsys.readouterr().err


@pytest.mark.slow
def test_foraging_is_learnt_as_our_own_is(tmp_path):
    """Ten seeds of each: wherever they are evaluated, the intervals of their returns touch."""
    budget = ["--steps", "100000", "--seeds", "10", "--num-evaluations", "10"]

    def returns(env):
        out = tmp_path / env.partition(":")[0]
        command = ["train", "ippo", "--env", *env.split(), *budget, "--out", str(out), "--quiet"]
        assert main(command) == 0
        return interval(load(out).metrics["return_sampled"])

    theirs = returns(f"{LBF} --env-option reward=common")
    ours = returns(LBF.replace("gym:lbforaging:", "lbf:"))
    assert theirs[0][-1] > theirs[1][0], "nothing is learnt"
    assert (theirs[0] <= ours[1]).all()
    assert (ours[0] <= theirs[1]).all()
