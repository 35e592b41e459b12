"""Environments with RLlib's multi-agent interface, with it and without it installed."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

import perla
from perla.envs.custom import adopt
from perla.errors import UserError

SEEN = Dict({"sensor": Box(-1, 1, (2,), np.float32), "action_mask": Box(0, 1, (6,), np.int8)})
ACTS = MultiDiscrete([2, 3])


class Pair:
    """Two agents who see the time and a mask; agent b leaves at `leaves`, all at `ends`."""

    possible_agents = ["a", "b"]
    observation_spaces = {"a": SEEN, "b": SEEN}
    action_spaces = {"a": ACTS, "b": ACTS}
    max_steps = 4

    def __init__(self, leaves=None, ends=None, observing=("a", "b")):
        self.leaves, self.ends, self.observing = leaves, ends, observing
        self.actions = []

    def see(self, agents):
        mask = np.array([1, 0, 1, 1, 1, 1], np.int8)
        seen = {"sensor": np.array([self.time / 8, 1], np.float32), "action_mask": mask}
        return dict.fromkeys(agents, seen)

    def reset(self, *, seed=None, options=None):
        self.time, self.agents = 0, list(self.possible_agents)
        return self.see(self.observing), {}

    def step(self, actions):
        self.time += 1
        self.actions.append({agent: action.tolist() for agent, action in actions.items()})
        gone = [agent for agent in actions if agent == "b" and self.time == self.leaves]
        over = self.time == self.ends
        self.agents = [agent for agent in actions if agent not in gone and not over]
        return (
            self.see(self.agents or actions),
            {agent: 1.0 + (agent == "b") for agent in actions},
            dict.fromkeys(gone, True) | {"__all__": over},
            {"__all__": False},
            {},
        )


def fake_rllib():
    """The class of RLlib, where its names are what counts."""
    kind = type("MultiAgentEnv", (gymnasium.Env,), {"observation_spaces": None})
    kind.__module__ = "ray.rllib.env.multi_agent_env"
    return kind


class Shared(Pair, fake_rllib()):
    """One space for all agents, as RLlib allows."""

    observation_space, action_space = SEEN, Discrete(6)
    observation_spaces = action_spaces = None

    def step(self, actions):
        return super().step({agent: np.array(action) for agent, action in actions.items()})


class ByAgent(Pair, gymnasium.Env):
    """Spaces of all agents in a dictionary of Gymnasium."""

    observation_spaces = action_spaces = possible_agents = None
    observation_space = Dict({"a": SEEN, "b": SEEN})
    action_space = Dict({"a": ACTS, "b": ACTS})

    def __init__(self):
        Pair.__init__(self)
        self.possible_agents = ["a", "b"]


def test_dictionaries_by_agent_are_read():
    env = adopt("ours:Pair", Pair())
    spec = env.spec
    assert (spec.agents, spec.obs, spec.state, spec.actions) == (2, 2, 4, (6, 6))
    assert (spec.limit, spec.mortal, spec.reward) == (4, True, "individual")
    assert "pettingzoo" not in spec.rules
    seen = env.reset(0)
    assert seen.avail.tolist() == [[True, False, True, True, True, True]] * 2
    timestep = env.step(np.array([5, 2]))
    assert env.env.unwrapped.actions == [{"a": [1, 2], "b": [0, 2]}]
    assert timestep.reward.tolist() == [1.0, 2.0]
    np.testing.assert_array_equal(timestep.observation.obs, [[0.125, 1], [0.125, 1]])


@pytest.mark.parametrize("kind", [Shared, ByAgent])
def test_all_ways_to_declare_spaces_are_read(kind):
    spec = adopt("ours:env", kind()).spec
    assert (spec.agents, spec.obs, spec.actions) == (2, 2, (6, 6))


def test_an_agent_may_leave_and_all_end_together():
    env = adopt("ours:Pair", Pair(leaves=1, ends=3))
    env.reset(0)
    steps = [env.step(np.zeros(2, np.int32)) for _ in range(3)]
    assert [step.observation.alive.tolist() for step in steps[:2]] == [[True, False]] * 2
    assert [bool(step.terminated) for step in steps] == [False, False, True]
    assert env.env.unwrapped.actions[1:] == [{"a": [0, 0]}] * 2
    assert steps[1].reward.tolist() == [1.0, 0.0]


def test_an_episode_is_truncated_at_its_limit():
    env = adopt("ours:Pair", Pair(), limit=2, reward="common", mortal=False)
    env.reset(0)
    steps = [env.step(np.zeros(2, np.int32)) for _ in range(2)]
    assert [(bool(s.terminated), bool(s.truncated)) for s in steps] == [(False,) * 2, (False, True)]
    assert steps[0].reward.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("env", "options", "told"),
    [
        (Pair(observing=("a",)), {}, "reset gives 'b' no observation; learners here need agents"),
        (Pair(), {"mortal": "perhaps"}, "mortal perhaps: expected"),
        (type("Nameless", (Shared,), {"possible_agents": []})(), {}, "lacks possible_agents"),
    ],
)
def test_mistakes_end_in_a_line(env, options, told):
    with pytest.raises(UserError, match=told):
        adopt("ours:env", env, **options)


def test_dictionaries_of_one_agent_are_not_taken_for_several():
    env = gymnasium.Env()
    env.observation_space = Dict({"camera": Box(0, 1, (2,)), "speed": Box(0, 1, (1,))})
    env.action_space = Dict({"wheel": Discrete(2), "brake": Discrete(2)})
    with pytest.raises(UserError, match="has one agent: its space is a Dict"):
        adopt("ours:env", env)


def test_it_is_trained_on():
    run = perla.train(
        Pair, "perla-ippo", steps=64, seeds=1, num_envs=2, rollout_length=8, hidden_size=8,
        env_options={"ends": 3}, num_evaluations=1, eval_episodes=2, absolute_episodes=2,
        quiet=True,
    )  # fmt: skip
    assert run.table()["final_return"].tolist() == [4.5]
