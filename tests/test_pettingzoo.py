"""The bridge to PettingZoo: environments equal the originals of their modules."""

import functools
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from mpe2 import simple_speaker_listener_v4, simple_spread_v3
from pettingzoo import ParallelEnv
from pettingzoo.utils.conversions import parallel_to_aec

from marks import slow
from perla.cli import main
from perla.envs.bridges.pettingzoo import PettingZoo
from perla.envs.bridges.to_pettingzoo import parallel
from perla.envs.processes.pool import first_observation, sample_actions
from perla.envs.registry import env_factory, make_env
from perla.errors import UserError
from perla.loops.host import Trainer
from perla.methods import recipes
from perla.plugins import install_command

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pettingzoo.butterfly import knights_archers_zombies_v11

SPREAD = "pettingzoo:mpe2.simple_spread_v3"
SPEAKER = "pettingzoo:mpe2.simple_speaker_listener_v4"
KNIGHTS = "pettingzoo:pettingzoo.butterfly.knights_archers_zombies_v11"
CONTINUOUS = {"continuous_actions": True}
SMALL = {"num_envs": 2, "rollout_length": 8, "hidden_size": 8, "num_layers": 1, "update_epochs": 1}

ENVIRONMENTS = {
    "spread": (SPREAD, simple_spread_v3, {}),
    "spread continuous": (SPREAD, simple_spread_v3, CONTINUOUS),
    "speaker": (SPEAKER, simple_speaker_listener_v4, {"max_cycles": 7}),
    "speaker continuous": (SPEAKER, simple_speaker_listener_v4, CONTINUOUS),
    "knights": (
        KNIGHTS,
        knights_archers_zombies_v11,
        {"max_cycles": 350, "spawn_delay": 2, "max_zombies": 20},
    ),
}

FACTS = {
    "spread": (3, 18, 54, (5, 5, 5), 25),
    "speaker": (2, 11, 14, (3, 5), 7),
    "speaker continuous": (2, 11, 14, (3, 5), 25),
    "knights": (4, 185, 144, (6, 6, 6, 6), 350),
}


class Band(ParallelEnv):
    """Two agents of unequal size; `leave` says who goes when, and how: `{agent: (time, how)}`."""

    metadata = {"name": "band"}
    possible_agents = ["drum", "flute"]
    max_cycles = 4

    def __init__(self, leave=None, masks=None):
        self.leave, self.masks, self.absent = leave or {}, masks, ()

    def observation_space(self, agent):
        box = Box(-9, 9, (2,) if agent == "drum" else (3,))
        mask = Dict({"observation": box, "action_mask": Box(0, 1, (3,), np.int8)})
        return mask if agent == "flute" and self.masks else box

    def action_space(self, agent):
        return Discrete(2 if agent == "drum" else 3)

    def see(self, agent):
        seen = np.full(self.observation_space("drum").shape, float(self.time))
        if agent == "flute":
            seen = np.full(3, -float(self.time))
        if agent == "flute" and self.masks:
            return {"observation": seen, "action_mask": self.masks["flute"]}
        return seen

    def infos(self):
        return {"drum": {"action_mask": self.masks["drum"]}} if self.masks else {}

    def reset(self, seed=None, options=None):
        self.time = 0
        self.agents = [agent for agent in self.possible_agents if agent not in self.absent]
        return {agent: self.see(agent) for agent in self.agents}, self.infos()

    def step(self, actions):
        assert set(actions) == set(self.agents)
        self.time += 1
        how = {
            agent: self.leave[agent][1]
            for agent in self.agents
            if self.leave.get(agent, (0, ""))[0] == self.time
        }
        here, self.agents = self.agents, [agent for agent in self.agents if agent not in how]
        return (
            {agent: self.see(agent) for agent in here},
            {agent: 1.0 if agent == "drum" else 2.0 for agent in here},
            {agent: how.get(agent) == "terminated" for agent in here},
            {agent: how.get(agent) == "truncated" for agent in here},
            self.infos(),
        )


def play(bridge):
    """The time steps of one episode."""
    bridge.reset(0)
    steps = []
    while not steps or not (steps[-1].terminated or steps[-1].truncated):
        steps.append(bridge.step(np.zeros(bridge.spec.agents, np.int32)))
    return steps


# --- Environments of other libraries ------------------------------------------------------------


@pytest.mark.parametrize("name", FACTS)
def test_the_facts_of_an_environment(name):
    id, _, options = ENVIRONMENTS[name]
    spec = make_env(id, **options).spec
    assert (spec.agents, spec.obs, spec.state, spec.actions, spec.limit) == FACTS[name]
    assert (spec.id, spec.reward, spec.mortal) == (id, "individual", True)
    assert spec.continuous == ("continuous" in name)
    assert spec.rules["options"] == options
    assert spec.rules["pettingzoo"]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_side_by_side_with_the_original(name):
    id, module, options = ENVIRONMENTS[name]
    bridge, original = make_env(id, **options), module.parallel_env(**options)
    agents, random = original.possible_agents, np.random.default_rng(0)
    # Of another one, as it also tries a step, after which not every reset forgets everything.
    first_observation(make_env(id, **options))
    deaths = ends = 0
    for seed in (3, 4):
        seen, _ = original.reset(seed=seed)
        observation = bridge.reset(seed)
        living = set(agents)
        for time in range(1, bridge.spec.limit + 1):
            check(observation, seen, living, original, bridge.spec)
            action = sample_actions(bridge.spec, random, observation.avail)
            timestep = bridge.step(action)
            actions = {
                agent: theirs(original.action_space(agent), action[agents.index(agent)])
                for agent in original.agents
            }
            seen, rewards, terminated, truncated, _ = original.step(actions)
            observation = timestep.final
            assert timestep.observation is timestep.final
            want = np.float32([rewards.get(agent, 0.0) for agent in agents])
            np.testing.assert_array_equal(timestep.reward, want)
            living -= {agent for agent, over in terminated.items() if over}
            assert timestep.terminated == (not living)
            assert timestep.truncated == (bool(living) and any(truncated.values()))
            assert timestep.truncated == (bool(living) and time == bridge.spec.limit)
            deaths += len(living) < len(agents)
            if timestep.terminated or timestep.truncated:
                assert not original.agents
                check(observation, seen, living, original, bridge.spec)
                ends += 1
                break
    assert ends == 2
    assert bool(deaths) == (name == "knights")


def theirs(space, action):
    if isinstance(space, Discrete):
        return int(action)
    assert (space.low == 0).all()
    assert (space.high == 1).all()
    return np.clip((action[: space.shape[0]] + 1) / 2, 0, 1)


def check(observation, seen, living, original, spec):
    """The original's numbers, then padding; nothing of those who have left."""
    np.testing.assert_array_equal(observation.state, np.float32(original.state()).ravel())
    for i, agent in enumerate(original.possible_agents):
        assert observation.alive[i] == (agent in living)
        size = int(np.prod(original.observation_space(agent).shape))
        want = np.float32(seen[agent]).ravel() if agent in living else np.zeros(size)
        np.testing.assert_array_equal(observation.obs[i, :size], want)
        assert not observation.obs[i, size:].any()
        here = spec.actions[i] if agent in living else 1
        np.testing.assert_array_equal(observation.avail[i], np.arange(spec.max_actions) < here)


@pytest.mark.parametrize(("id", "options", "algo"), [
    (SPEAKER, CONTINUOUS, "perla-mappo"),
    *slow((KNIGHTS, {}, "ippo")),
])  # fmt: skip
def test_it_is_trained_on(id, options, algo):
    made = env_factory(id, limit=6, **options)
    config = recipes.make(algo, **SMALL)
    trainer = Trainer(made(), made, config, seeds=(0,), steps=32, eval_episodes=2)
    try:
        population, rows = trainer.advance(trainer.init(), 32)
        assert rows[0]["step"] == 32
        assert np.isfinite(rows[0]["return"])
        assert rows[0]["episode_length"] == 6
        assert int(population[0].steps) == 32
    finally:
        trainer.close()


def test_a_picture_is_the_environments_own():
    bridge = make_env(SPREAD)
    bridge.reset(0)
    picture = bridge.render()
    assert (picture.shape, picture.dtype) == ((700, 700, 3), np.uint8)
    assert picture.min() < picture.max()


def test_our_own_environments_come_back_as_they_went():
    """Exported and bridged, foraging with masked actions is what it was."""
    import jax

    env = make_env("lbf:Foraging-5x5-2p-1f-coop-v2", mask=True)
    bridge = PettingZoo("round", parallel(env), limit=env.spec.limit)
    seen = bridge.reset(3)
    for name in ("agents", "obs", "state", "actions", "limit"):
        assert getattr(bridge.spec, name) == getattr(env.spec, name)
    key, begun = jax.random.split(jax.random.key(3))
    state, want = env.reset(begun)
    for _ in range(5):
        for name in ("obs", "state", "avail"):
            np.testing.assert_array_equal(getattr(seen, name), getattr(want, name))
        assert not seen.avail.all()
        action = np.int32([np.flatnonzero(row)[-1] for row in seen.avail])
        key, now = jax.random.split(key)
        state, timestep = jax.jit(env.step)(now, state, action)
        want, seen = timestep.final, bridge.step(action).final


def test_what_steps_it_imports_no_jax():
    code = (
        "import sys\n"
        "from perla.envs.registry import make_env\n"
        f"make_env({SPREAD!r}).reset(0)\n"
        "make_env('gym:lbforaging:Foraging-5x5-2p-1f-coop-v3').reset(0)\n"
        "make_env('mpe2.simple_spread_v3:parallel_env').reset(0)\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# --- Any environment ----------------------------------------------------------------------------


def test_unequal_agents_are_padded_and_masked():
    bridge = PettingZoo("band", Band())
    assert (bridge.spec.obs, bridge.spec.state, bridge.spec.actions) == (3, 5, (2, 3))
    seen = bridge.reset(0)
    np.testing.assert_array_equal(seen.avail, [[1, 1, 0], [1, 1, 1]])
    timestep = bridge.step(np.zeros(2, np.int32))
    np.testing.assert_array_equal(timestep.final.obs, [[1, 1, 0], [-1, -1, -1]])
    np.testing.assert_array_equal(timestep.final.state, [1, 1, -1, -1, -1])
    np.testing.assert_array_equal(timestep.reward, [1, 2])


def test_masks_are_found_in_the_observation_and_in_the_info():
    bridge = PettingZoo("band", Band(masks={"drum": [0, 1], "flute": np.int8([1, 0, 1])}))
    assert bridge.spec.obs == 3
    np.testing.assert_array_equal(bridge.reset(0).avail, [[0, 1, 0], [1, 0, 1]])


def test_whoever_leaves_sees_nothing_and_does_nothing():
    bridge = PettingZoo("band", Band({"flute": (2, "terminated"), "drum": (3, "terminated")}))
    steps = play(bridge)
    assert [step.final.alive.tolist() for step in steps] == [
        [True, True], [True, False], [False, False],
    ]  # fmt: skip
    assert [bool(step.terminated) for step in steps] == [False, False, True]
    np.testing.assert_array_equal(steps[1].final.obs, [[2, 2, 0], [0, 0, 0]])
    np.testing.assert_array_equal(steps[1].final.state, [2, 2, 0, 0, 0])
    np.testing.assert_array_equal(steps[1].final.avail, [[1, 1, 0], [1, 0, 0]])
    # What somebody earns by leaving is theirs; afterwards there is nothing to earn.
    np.testing.assert_array_equal([step.reward for step in steps], [[1, 2], [1, 2], [1, 0]])
    common = play(PettingZoo("band", Band({"flute": (2, "terminated")}), reward="common"))
    np.testing.assert_array_equal([step.reward[0] for step in common], [3, 3, 1, 1])
    assert bridge.reset(0).alive.all()


def test_where_nobody_is_mortal_nobody_may_leave():
    calm = PettingZoo("band", Band(), mortal=False)
    assert not calm.spec.mortal
    assert all(step.final.alive is None for step in play(calm))
    both = dict.fromkeys(("drum", "flute"), (2, "terminated"))
    last = play(PettingZoo("band", Band(both), mortal=False))[-1]
    assert last.terminated
    np.testing.assert_array_equal(last.final.obs, [[2, 2, 0], [-2, -2, -2]])
    with pytest.raises(
        ValueError, match="flute has left while others go on; set --env-option mort"
    ):
        play(PettingZoo("band", Band({"flute": (2, "terminated")}), mortal=False))


def test_ends_and_limits_are_told_apart():
    def last(leave, **options):
        steps = play(PettingZoo("band", Band(leave), **options))
        alive = steps[-1].final.alive.tolist()
        return len(steps), bool(steps[-1].terminated), bool(steps[-1].truncated), alive

    both = [True, True]
    cut, end = (4, "truncated"), (4, "terminated")
    assert last({}) == (4, False, True, both)
    assert last({}, limit=3) == (3, False, True, both)
    assert last({"drum": cut, "flute": cut}) == (4, False, True, both)
    assert last({"drum": end, "flute": end}) == (4, True, False, [False, False])
    assert last({"drum": cut, "flute": end}) == (4, False, True, [True, False])
    # Who is cut while others go on has left.
    assert last({"drum": (2, "truncated")}) == (4, False, True, [False, True])
    early = dict.fromkeys(("drum", "flute"), (2, "truncated"))
    assert last(early) == (2, False, True, both)


def test_an_agent_who_joins_is_refused():
    env = Band()
    env.absent = ("flute",)
    bridge = PettingZoo("band", env)
    assert bridge.reset(0).alive.tolist() == [True, False]
    step = env.step

    def join(actions):
        came = step(actions)
        env.agents = ["drum", "flute"]
        return came

    env.step = join
    with pytest.raises(ValueError, match="joins in the middle of an episode"):
        bridge.step(np.zeros(2, np.int32))


def test_the_state_can_be_chosen():
    assert make_env(SPREAD).spec.rules["state"] == "own"
    assert make_env(KNIGHTS, state="observations").spec.state == 4 * 135
    assert PettingZoo("band", Band()).spec.rules["state"] == "observations"
    with pytest.raises(UserError, match=r"band offers no state\(\) of its own"):
        PettingZoo("band", Band(), state="own")


@pytest.fixture
def module(monkeypatch):
    """Makes modules of environments."""

    def build(name, **members):
        made = types.ModuleType(name)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, name, made)

    return build


def test_turns_that_can_be_played_at_once_are(module):
    module("turns", env=lambda: parallel_to_aec(Band()))
    assert make_env("pettingzoo:turns").spec.actions == (2, 3)
    aec = functools.partial(simple_spread_v3.env, max_cycles=3)
    module("spread", env=aec)
    assert len(play(make_env("pettingzoo:spread"))) == 3
    still = aec()
    still.metadata["is_parallelizable"] = False
    module("still", env=lambda: still)
    try:
        with pytest.raises(UserError, match="take turns; learners here need agents that act at"):
            make_env("pettingzoo:still")
    finally:
        still.metadata["is_parallelizable"] = True


# --- A user's own -------------------------------------------------------------------------------


def test_a_users_function_may_return_one(module):
    made = []

    def band(leave=False):
        made.append(Band({"drum": (2, "terminated")} if leave else {}))
        return made[-1]

    module("ours_zoo", band=band, turns=lambda: simple_spread_v3.env(), fails=lambda: Band)
    bridge = make_env("ours_zoo:band", leave=True)
    assert isinstance(bridge, PettingZoo)
    assert bridge.env is made[-1]
    assert (bridge.spec.id, bridge.spec.rules["options"]) == ("ours_zoo:band", {"leave": True})
    assert play(bridge)[-1].final.alive.tolist() == [False, True]
    bridge = make_env("ours_zoo:band", limit=2, reward="common", mortal=False, state="observations")
    assert (bridge.spec.limit, bridge.spec.reward, bridge.spec.mortal) == (2, "common", False)
    assert bridge.spec.rules["options"] == {}
    assert make_env("ours_zoo:turns").spec.agents == 3
    with pytest.raises(UserError, match="which is no environment"):
        make_env("ours_zoo:fails")


def test_a_users_function_may_return_one_of_gymnasium(module):
    import gymnasium
    import lbforaging  # noqa: F401  It registers its environments.

    name = "Foraging-5x5-2p-1f-coop-v3"
    module(
        "ours_gym",
        forage=lambda: gymnasium.make(name, disable_env_checker=True),
        alone=lambda: gymnasium.make("CartPole-v1"),
        limited=lambda limit: gymnasium.make(name, disable_env_checker=True, sight=limit),
    )
    bridge, same = make_env("ours_gym:forage"), make_env(f"gym:lbforaging:{name}")
    assert (bridge.spec.actions, bridge.spec.limit) == (same.spec.actions, same.spec.limit)
    np.testing.assert_array_equal(bridge.reset(5).obs, same.reset(5).obs)
    assert make_env("ours_gym:forage", limit=7, reward="common").spec.limit == 7
    # What the function takes is the function's.
    assert make_env("ours_gym:limited", limit=1).spec.limit == same.spec.limit
    with pytest.raises(UserError, match="unexpected keyword argument 'mortal'"):
        make_env("ours_gym:forage", mortal=True)
    with pytest.raises(UserError, match="ours_gym:alone has one agent"):
        make_env("ours_gym:alone")


# --- Mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        ("pettingzoo:mpe2.simple_spred_v3", {}, "did you mean 'mpe2.simple_spread_v3'"),
        ("pettingzoo:mpe3.simple_spread_v3", {}, "there is no module 'mpe3'; install it"),
        ("pettingzoo:not a module", {}, "'not a module' is no module"),
        ("pettingzoo:pettingzoo.sisl", {}, "the module has neither parallel_env nor env"),
        ("pettingzoo:mpe2.simple_tag_v3", {}, "sets its agents against each other"),
        ("pettingzoo:pettingzoo.classic.chess_v6", {}, "sets its agents against each other"),
        (SPREAD, {"colour": 3}, "cannot be made with colour=3: .*unexpected keyword argument"),
        (SPREAD, {"limit": 1.5}, "limit 1.5: expected"),
        (SPREAD, {"reward": "team"}, "reward team: expected"),
        (SPREAD, {"mortal": "maybe"}, "mortal maybe: expected"),
        (SPREAD, {"state": "obs"}, "unknown state of pettingzoo:mpe2.simple_spread_v3 'obs'"),
        (SPREAD, {"render_mode": "human"}, "render_mode is no option"),
        ("mpe2.simple_spread_v3", {}, "has no family; did you mean 'pettingzoo:mpe2"),
    ],
)
def test_mistakes_end_in_a_line(id, options, message):
    with pytest.raises(UserError, match=message) as told:
        make_env(id, **options)
    assert len(str(told.value)) < 200


def test_an_environment_that_needs_another_package_names_it(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needy_zoo.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(UserError, match="needy_zoo needs nowhere_to_be_found, which is not inst"):
        make_env("pettingzoo:needy_zoo")


def test_a_missing_extra_is_told_in_a_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    assert main(["train", "ippo", "--env", SPREAD]) != 0
    assert f"not installed: {install_command('pettingzoo')}" in capsys.readouterr().err
