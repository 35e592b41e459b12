"""Environments of other people: their masks, flags and values mean one thing, or are refused."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple
from pettingzoo import ParallelEnv

from perla.envs.bridges import masks
from perla.envs.bridges.gym import Gym
from perla.envs.bridges.pettingzoo import PettingZoo
from perla.envs.bridges.smac import SMAC
from perla.envs.processes.pool import first_observation
from perla.envs.values import Fault
from perla.errors import UserError

OWN = Box(-1, 1, (2,))
SEEN = np.float32([0.5, -0.5])
NAMES = (
    "action_mask", "action_masks", "actionMask", "mask", "avail_actions", "available_actions",
    "available_actions_mask", "avail", "legal_moves", "legalMoves", "legal_actions",
    "valid_actions", "possible_moves", "agent_0_action_mask", "mask_actions",
)  # fmt: skip
DENIED = ("invalid_actions", "illegal_moves", "unavailableActions", "invalid_action_mask")
FEATURES = ("obs", "num_legal_moves", "last_action", "moves", "masked_obs", "entity_mask", "legal")


class Team(gymnasium.Env):
    """Two agents in Gymnasium; `returns` are the five values of its steps, by name."""

    max_steps = 4

    def __init__(self, seen=OWN, acts=None, observation=None, info=None, **returns):
        self.observation_space = Tuple((seen, seen))
        self.action_space = Tuple((acts or Discrete(3),) * 2)
        self.observation = SEEN if observation is None else observation
        self.info = {} if info is None else info
        self.returns = {"rewards": (1.0, 2.0), "terminated": False, "truncated": False} | returns

    def reset(self, *, seed=None, options=None):
        return (self.observation, self.observation), self.info

    def step(self, action):
        return (self.observation, self.observation), *self.returns.values(), self.info


class Band(ParallelEnv):
    """The same in PettingZoo; `returns` replace the dictionaries of its steps."""

    metadata = {"name": "band"}
    possible_agents = ["drum", "flute"]
    max_cycles = 4

    def __init__(self, seen=OWN, acts=None, observation=None, infos=None, **returns):
        self.seen, self.acts, self.returns = seen, acts or Discrete(3), returns
        self.observation = SEEN if observation is None else observation
        self.infos = self.each({}) if infos is None else infos

    def each(self, value):
        return dict.fromkeys(self.possible_agents, value)

    def observation_space(self, agent):
        return self.seen

    def action_space(self, agent):
        return self.acts

    def reset(self, seed=None, options=None):
        self.agents = list(self.possible_agents)
        return self.each(self.observation), self.infos

    def step(self, actions):
        values = {
            "rewards": self.each(1.0), "terminations": self.each(False),
            "truncations": self.each(False),
        } | self.returns  # fmt: skip
        return self.each(self.observation), *values.values(), self.infos


def gym(**options):
    return Gym("team", Team(**options))


def zoo(**options):
    return PettingZoo("band", Band(**options))


BRIDGES = pytest.mark.parametrize("bridge", [gym, zoo])


def step(env):
    env.reset(0)
    return env.step(np.zeros(2, np.int32))


# --- Masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@BRIDGES
def test_a_mask_in_an_observation_is_honoured_and_no_feature(bridge, name):
    seen = Dict({"board": OWN, name: Box(0, 1, (3,), np.int8), "colour": Discrete(2)})
    env = bridge(seen=seen, observation={"board": SEEN, name: np.int8([1, 0, 1]), "colour": 1})
    assert env.spec.obs == 4
    observation = env.reset(0)
    np.testing.assert_array_equal(observation.avail, [[1, 0, 1]] * 2)
    np.testing.assert_array_equal(observation.obs, [[0.5, -0.5, 0, 1]] * 2)


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_in_an_info_is_honoured(name):
    np.testing.assert_array_equal(
        gym(info={name: ([1, 0, 1], [True, True, False])}).reset(0).avail, [[1, 0, 1], [1, 1, 0]]
    )
    env = zoo(infos={"drum": {name: [1, 0, 1]}, "flute": {}})
    np.testing.assert_array_equal(env.reset(0).avail, [[1, 0, 1], [1, 1, 1]])


@BRIDGES
def test_a_mask_is_found_in_dictionaries_inside_and_beside_the_space(bridge):
    inside = Dict({"all": Dict({"board": OWN, "legal_moves": Box(0, 1, (3,), np.int8)})})
    env = bridge(seen=inside, observation={"all": {"board": SEEN, "legal_moves": [0, 1, 1]}})
    assert env.spec.obs == 2
    np.testing.assert_array_equal(env.reset(0).avail, [[0, 1, 1]] * 2)
    # The space does not list it.
    env = bridge(seen=Dict({"a": OWN}), observation={"a": SEEN, "action_mask": [0, 1, 1]})
    np.testing.assert_array_equal(env.reset(0).avail, [[0, 1, 1]] * 2)


@pytest.mark.parametrize("name", FEATURES)
def test_other_names_are_features(name):
    assert not masks.is_mask(name)
    env = gym(seen=Dict({name: OWN}), observation={name: SEEN})
    assert env.spec.obs == 2
    assert env.reset(0).avail.all()


@pytest.mark.parametrize("name", DENIED)
@BRIDGES
def test_a_mask_of_what_is_not_available_is_refused(bridge, name):
    seen = Dict({"board": OWN, name: Box(0, 1, (3,), np.int8)})
    with pytest.raises(UserError, match=f"'{name}' names the actions that are not available"):
        bridge(seen=seen, observation={"board": SEEN, name: [0, 0, 1]})
    with pytest.raises(UserError, match="names the actions that are not available"):
        gym(info={name: [[0, 0, 1]] * 2})


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([1, 0], r"has shape \(2,\), expected \(3,\)"),
        ([1.0, float("nan"), 1.0], "holds nan, expected booleans, or 0 and 1"),
        ([0.2, 0.8, 0.0], "holds 0.2"),
        ([0, 1, 2], "holds 2"),
        ([1j, 0, 1], "of complex128"),
        (["1", "0", "1"], "of <U1"),
        ({"left": 1}, "is a dict"),
        ([[1], [0, 1], [1]], "unequal parts"),
    ],
)
@BRIDGES
def test_a_mask_is_of_zeros_and_ones_for_the_actions(bridge, mask, message):
    seen = Dict({"board": OWN, "action_mask": Box(0, 1, (3,), np.int8)})
    with pytest.raises(UserError, match=f"action_mask` .*{message}") as caught:
        bridge(seen=seen, observation={"board": SEEN, "action_mask": mask})
    assert "\n" not in str(caught.value)


def test_masks_where_they_are_not_looked_for_are_refused():
    for info in ({"drum": {"action_mask": [1, 1, 1]}}, {"more": {"legal_moves": [1, 1, 1]}}):
        with pytest.raises(UserError, match=r"is inside .*, and is looked for beside it"):
            gym(info=info)
    with pytest.raises(UserError, match="are 3 for 2 agents"):
        gym(info={"action_mask": [1, 1, 1]})
    with pytest.raises(UserError, match=r"entries of info.* are a dict"):
        gym(info={"action_mask": {0: [1, 1, 1], 1: [1, 1, 1]}})
    with pytest.raises(UserError, match="is inside 'more'"):
        zoo(infos={"drum": {"more": {"avail_actions": [1, 1, 1]}}})
    with pytest.raises(UserError, match="mask 'action_mask' in infos belongs to no agent"):
        zoo(infos={"action_mask": {"drum": [1, 1, 1]}})


def test_two_masks_that_differ_are_refused():
    seen = Dict({"board": OWN, "action_mask": Box(0, 1, (3,), np.int8)})
    observation = {"board": SEEN, "action_mask": [1, 0, 1]}
    same = {"drum": {"legal_moves": [1, 0, 1]}}
    assert not zoo(seen=seen, observation=observation, infos=same).reset(0).avail[0, 1]
    other = {"drum": {"legal_moves": [1, 1, 1]}}
    with pytest.raises(UserError, match="'action_mask' and 'legal_moves' are action masks that di"):
        zoo(seen=seen, observation=observation, infos=other)


@pytest.mark.parametrize(
    "mask",
    [[1, 0, 1, 1, 0], ([1, 0], [1, 1, 0]), (np.int8([1, 0]), np.bool_([1, 1, 0])),
     [1, 1, 0, 0, 0, 0]],
    ids=["concatenated", "lists", "arrays", "combinations"],
)  # fmt: skip
@BRIDGES
def test_a_mask_by_parts_allows_the_combinations_of_what_it_allows(bridge, mask):
    seen = Dict({"board": OWN, "mask": Box(0, 1, (5,), np.int8)})
    env = bridge(seen=seen, acts=MultiDiscrete([2, 3]), observation={"board": SEEN, "mask": mask})
    np.testing.assert_array_equal(env.reset(0).avail, [[1, 1, 0, 0, 0, 0]] * 2)


def test_a_mask_by_parts_that_could_be_one_by_combinations_is_refused():
    acts = MultiDiscrete([2, 2])
    with pytest.raises(UserError, match="one for each combination of actions or for each choice"):
        gym(acts=acts, info={"action_mask": [[1, 0, 1, 1]] * 2})
    env = gym(acts=acts, info={"action_mask": [([1, 0], [1, 1])] * 2})
    np.testing.assert_array_equal(env.reset(0).avail, [[1, 1, 0, 0]] * 2)
    with pytest.raises(UserError, match=r"shape \(3,\), expected \(6,\) or \(5,\)"):
        gym(acts=MultiDiscrete([2, 3]), info={"action_mask": [[1, 0, 1]] * 2})


# --- Flags --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "ended"),
    [
        (True, True), (np.bool_(True), True), (1, True), (0.0, False), ([True, True], True),
        (np.array([0, 0]), False), (np.array([[True]]), True), ({"__all__": True, 0: False}, True),
        ({"__all__": False, 0: True}, False), ((True,), True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_flags_that_mean_one_thing_are_combined(name, flag, ended):
    timestep = step(gym(**{name: flag}))
    assert getattr(timestep, name) == ended
    assert type(getattr(timestep, name)) is np.bool_


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (None, "None, expected booleans"),
        ({}, "dict without '__all__'"),
        ({0: True, 1: True}, "dict without '__all__'"),
        ({"__all__": None}, "None, expected"),
        ([True, False], "for some agents only"),
        ([True, True, True], "is 3 values, expected one boolean"),
        ("False", "expected booleans"),
        (2, "holds 2, expected booleans, or 0 and 1"),
        (float("nan"), "holds nan"),
        (object(), "is an object"),
        ([], "is 0 values"),
    ],
)
@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_the_truth_of_an_object_is_never_taken(name, flag, message):
    with pytest.raises(Fault, match=f"{name}.*{message}"):
        step(gym(**{name: flag}))


def test_flags_by_agent_may_say_it_of_all():
    for name, ended in (("terminations", "terminated"), ("truncations", "truncated")):
        timestep = step(zoo(**{name: {"__all__": True}}))
        assert getattr(timestep, ended)
        timestep = step(zoo(**{name: {"__all__": False, "drum": False, "flute": np.bool_(0)}}))
        assert not getattr(timestep, ended)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (True, "are True, expected a dict with an entry per agent"),
        (None, "are None"),
        ([False, False], "are a list"),
        ({"drum": None, "flute": False}, r"\['drum'\]` is None"),
        ({"drum": [True, False], "flute": False}, r"\['drum'\]` is 2 values"),
        ({"__all__": {}}, r"\['__all__'\]` is a dict"),
        ({"drum": False}, "lack agent 'flute'"),
    ],
)
@pytest.mark.parametrize("name", ["terminations", "truncations"])
def test_flags_by_agent_are_booleans(name, flags, message):
    with pytest.raises(Fault, match=message):
        step(zoo(**{name: flags}))


# --- Numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (SEEN * 1j, "of complex"),
        (np.array(["1", "2"]), "of <U1"),
        (np.array([None, 1.0]), "expected real numbers"),
        ({"board": SEEN}, "is a dict"),
        (SEEN[:1], "has 1 numbers, its space has 2"),
    ],
)
@BRIDGES
def test_observations_are_not_cast(bridge, observation, message):
    with pytest.raises(UserError, match=message):
        bridge(observation=observation)


def test_parts_of_observations_are_not_cast_either():
    seen = Dict({"count": Box(0, 9, (1,), np.int64), "kind": Discrete(3)})
    env = gym(seen=seen, observation={"count": [0.5], "kind": 1})
    np.testing.assert_array_equal(env.reset(0).obs[0], [0.5, 0, 1, 0])
    for wrong, message in (
        ({"count": [1]}, "lacks 'kind'"),
        ({"count": [1], "kind": 3}, "observes 3, which is not in Discrete"),
        ({"count": [1], "kind": -1}, "observes -1, which is not in Discrete"),
        ({"count": [1j], "kind": 0}, "of complex"),
        (SEEN, "its space is a Dict"),
    ):
        with pytest.raises(UserError, match=message):
            gym(seen=seen, observation=wrong)


@pytest.mark.parametrize("reward", [1j, "1", None, {}])
def test_rewards_are_not_cast(reward):
    for rewards in ((reward, reward), {0: 1.0, 1: 1.0}, None):
        with pytest.raises(Fault, match="`rewards`"):
            step(gym(rewards=rewards))
    with pytest.raises(Fault, match="`rewards`"):
        step(zoo(rewards={"drum": reward, "flute": reward}))


# --- Containers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reset", "message"),
    [
        (lambda self, seed=None: SEEN, r"reset returns array.*, expected \(observations, infos\)"),
        (lambda self, seed=None: None, "reset returns None"),
        (lambda self, seed=None: (1, 2, 3), "reset returns 3 values"),
        (lambda self, seed=None: (self.each(SEEN), None), "infos? (is|are) None, expected a dict"),
        (lambda self, seed=None: (None, {}), "observations are None, expected a"),
        (lambda self: (self.each(SEEN), {}), "reset takes no seed; declare it as reset"),
        (lambda self, options: None, "reset takes no seed; declare it as reset"),
        (lambda self, seed=None: 1 / 0, "reset fails: ZeroDivisionError at test_foreign.py:"),
    ],
)
@pytest.mark.parametrize("kind", [Team, Band])
def test_a_reset_that_is_not_the_librarys_is_told_in_a_line(kind, reset, message, monkeypatch):
    monkeypatch.setattr(Team, "each", lambda self, value: (value, value), raising=False)

    def begin(self, **arguments):
        self.agents = list(Band.possible_agents)
        return reset(self, **arguments)

    monkeypatch.setattr(kind, "reset", begin)
    with pytest.raises(UserError, match=message) as caught:
        Gym("ours", Team()) if kind is Team else PettingZoo("ours", Band())
    assert str(caught.value).startswith("ours: reset")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            ((SEEN, SEEN), (1.0, 1.0), False, {}),
            "ours: step fails: step returns 4 values, expected",
        ),
        (None, "step returns None"),
        (((SEEN,), (1.0, 1.0), False, False, {}), "observations are 1 for 2 agents"),
        (((SEEN, SEEN), (1.0,), False, False, {}), "rewards of shape"),
        (((SEEN, SEEN), (1.0, 1.0), False, False, None), "info is None, expected a dict"),
        (((SEEN, SEEN), (1.0, 1.0), None, False, {}), "`terminated` is None"),
    ],
)
def test_a_step_that_is_not_gymnasiums_is_told_before_training(result, message):
    env = Team()
    env.step = lambda action: result
    with pytest.raises(UserError, match=message):
        first_observation(Gym("ours", env))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": [1.0, 1.0]}, "rewards are a list, expected a dict with an entry per agent"),
        ({"rewards": {"drum": 1.0}}, "rewards lack agent 'flute'"),
        ({"terminations": False}, "terminations are False, expected a dict"),
    ],
)
def test_a_step_that_is_not_pettingzoos_is_told_before_training(changes, message):
    with pytest.raises(UserError, match=f"ours: step fails: {message}"):
        first_observation(PettingZoo("ours", Band(**changes)))


def test_infos_of_agents_are_dictionaries():
    with pytest.raises(UserError, match="the info of 'drum' is None, expected a dict"):
        zoo(infos={"drum": None, "flute": {}})


def test_missing_members_are_named():
    env = Team()
    del env.action_space
    with pytest.raises(UserError, match=r"ours has no spaces: AttributeError .*action_space"):
        Gym("ours", env)
    env = Band()
    env.action_space = {"drum": Discrete(2)}
    with pytest.raises(UserError, match="ours has no space for an agent: TypeError"):
        PettingZoo("ours", env)


# --- SMAC's interface ---------------------------------------------------------------------------


class Units:
    """A `MultiAgentEnv` that returns what it is told to."""

    def __init__(self, result=(1.0, False, {}), avail=((1, 1), (1, 0))):
        self.result, self.avail = result, avail

    def get_env_info(self):
        return {
            "n_agents": 2, "n_actions": 2, "obs_shape": 1, "state_shape": 1, "episode_limit": 4
        }  # fmt: skip

    def reset(self):
        pass

    def step(self, actions):
        return self.result

    def get_obs(self):
        return [[0.0], [0.0]]

    def get_state(self):
        return [0.0]

    def get_avail_actions(self):
        return self.avail


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"result": (1.0, None, {})}, "`terminated` is None"),
        ({"result": (1.0, False, None)}, "info is None"),
        ({"result": (1j, False, {})}, "`reward` is of complex"),
        ({"result": ((1.0, 1.0), False, {})}, "`reward` has shape"),
        ({"result": (1.0, False)}, "step returns a tuple, expected"),
        ({"result": (1.0, False, {"episode_limit": "no"})}, "episode_limit.*expected booleans"),
        ({"avail": ((1, float("nan")), (1, 1))}, "`avail_actions` holds nan"),
    ],
)
def test_values_of_smacs_interface_are_not_cast(changes, message):
    with pytest.raises(Fault, match=message):
        step(SMAC("ours", Units(**changes), {}))


def test_an_end_at_the_limit_that_smacs_interface_reports_early_is_a_truncation():
    timestep = step(SMAC("ours", Units(result=(1.0, True, {"episode_limit": True})), {}))
    assert (timestep.terminated, timestep.truncated) == (False, True)
