"""Bridges to JaxMARL and jumanji: the contract of environments, and equality with the originals.

Every environment is played once, side by side with the original, with the same key and actions:
the results must be equal to the bit.
"""

from __future__ import annotations

import re
import sys
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perla.envs.bridges import jaxmarl, jumanji
from perla.envs.protocol import Env, Observation, TimeStep
from perla.envs.registry import make_env
from perla.envs.wrappers import AutoReset
from perla.errors import UserError
from perla.loops.anakin import Trainer
from perla.methods import recipes
from perla.plugins import install_command

CONTINUOUS = {"action_type": "Continuous"}

ENVIRONMENTS: dict[str, tuple[str, dict[str, Any], int]] = {
    # name: id, options, steps to play
    "SMAX-3s5z": ("jaxmarl:SMAX-3s5z", {"max_steps": 12}, 16),
    "SMAX-3m": ("jaxmarl:SMAX-3m", {}, 101),
    "SMAX continuous": ("jaxmarl:SMAX-3m", {"action_type": "continuous", "max_steps": 9}, 10),
    "spread": ("jaxmarl:MPE_simple_spread_v3", {}, 30),
    "spread continuous": ("jaxmarl:MPE_simple_spread_v3", {"max_steps": 7} | CONTINUOUS, 10),
    "reference": ("jaxmarl:MPE_simple_reference_v3", {}, 30),
    "speaker": ("jaxmarl:MPE_simple_speaker_listener_v4", {}, 30),
    "speaker continuous": ("jaxmarl:MPE_simple_speaker_listener_v4", CONTINUOUS, 30),
    "facmac": ("jaxmarl:MPE_simple_facmac_3a_v1", {}, 30),
    "overcooked": ("jaxmarl:overcooked-coord_ring", {"max_steps": 50}, 55),
    "overcooked_v2": ("jaxmarl:overcooked_v2-cramped_room", {"max_steps": 20}, 22),
    "hanabi": ("jaxmarl:hanabi", {"num_colors": 2, "num_ranks": 5, "hand_size": 2}, 30),
    "riddle": ("jaxmarl:switch_riddle", {}, 8),
    "warehouse": ("jumanji:RobotWarehouse-v0", {"time_limit": 40}, 45),
    "foraging": (
        "jumanji:LevelBasedForaging-v0",
        {"grid_size": 6, "num_food": 1, "force_coop": False, "fov": 6},
        100,
    ),
    "connector": ("jumanji:Connector-v2", {"grid_size": 5, "num_agents": 2, "time_limit": 9}, 12),
    "cleaner": ("jumanji:Cleaner-v0", {"num_rows": 4, "num_cols": 4, "time_limit": 30}, 32),
}

ENDS = dict.fromkeys(("SMAX-3m", "hanabi", "warehouse", "foraging"), True) | dict.fromkeys(
    ("SMAX-3s5z", "spread", "facmac", "overcooked", "overcooked_v2"), False
)
"""Environments that terminate when played as here, and those that are truncated."""

QUICK = ("SMAX-3s5z", "speaker continuous", "riddle")
"""Environments that are tested by default; `make test-all` tests all."""

INDIVIDUAL = {"spread", "spread continuous", "reference", "foraging", "connector"}
SMALL = {"num_envs": 4, "rollout_length": 8, "hidden_size": 8, "num_layers": 1, "update_epochs": 1}


class Played(NamedTuple):
    """One run of the bridge and of the original, `[time, ...]`, which continues after an end."""

    observation: Observation
    """The observation before each step."""
    action: jax.Array
    timestep: TimeStep
    state: Any
    """Our state after each step."""
    theirs: dict[str, Any]
    """What their own functions gave."""


@cache
def get_env(name: str) -> Env:
    id, options, _ = ENVIRONMENTS[name]
    return made(id, **options)


def made(id: str, **options: Any) -> Env:
    """The environment. JaxMARL may be missing from Python 3.12 on, where it would hold JAX back."""
    if sys.version_info >= (3, 12) and id.startswith("jaxmarl"):
        pytest.importorskip("jaxmarl")
    return make_env(id, **options)


def act(env: Env, key: jax.Array, observation: Observation) -> jax.Array:
    """Random legal actions."""
    if env.spec.continuous:
        wild = jax.random.uniform(key, observation.avail.shape, minval=-1.3, maxval=1.3)
        return env.spec.bounded(wild)
    return jax.random.categorical(key, jnp.where(observation.avail, 0.0, -jnp.inf))


def their_reset(env: Any, key: jax.Array) -> tuple[Any, Any]:
    key = jax.random.key_data(key)
    if isinstance(env, jaxmarl.JaxMARL):
        return env.env.reset(key)[1]
    return env.env.reset(key)[0]


def their_step(env: Any, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, dict]:
    if isinstance(env, jaxmarl.JaxMARL):
        names = env.info.agents(env.env)
        joint = {name: jnp.zeros_like(action[0]) for name in env.env.agents}
        for index, name in enumerate(names):
            joint[name] = action[index]
            if env.spec.continuous:
                # All of their continuous environments take 0 to 1.
                joint[name] = (action[index, : env.spec.actions[index]] + 1) / 2
        if env.spec.continuous and len(names) < len(env.env.agents):
            idle = {name: jnp.zeros(5) for name in set(env.env.agents) - set(names)}
            joint |= idle
        seen, state, reward, done, _ = env.env.step_env(
            jax.random.key_data(key), state, {name: joint[name] for name in env.env.agents}
        )
        return state, {
            "obs": [jnp.ravel(seen[name]) for name in names],
            "state": seen.get("world_state"),
            "reward": jnp.stack([reward[name] for name in names]),
            "over": done["__all__"],
        }
    state, timestep = env.env.step(state, action)
    seen = timestep.observation
    return state, {
        "obs": list(getattr(seen, "agents_view", action[:, None])),
        "mask": seen.action_mask,
        "reward": timestep.reward,
        "over": timestep.last(),
    }


@cache
def played(name: str) -> Played:
    env, steps = get_env(name), ENVIRONMENTS[name][2]

    def one(carry, key):
        state, theirs, observation = carry
        key_action, key_step = jax.random.split(key)
        action = act(env, key_action, observation)
        state, timestep = env.step(key_step, state, action)
        with jax.numpy_rank_promotion("allow"):
            theirs, gave = their_step(env, key_step, theirs, action)
        theirs = jax.tree.map(jnp.asarray, theirs)
        played = Played(observation, action, timestep, state, gave | {"inner": theirs})
        return (state, theirs, timestep.observation), played

    # XLA rounds alike in both, as users compile them; its former emitters need not.
    @partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True})
    def run(key):
        state, observation = env.reset(key)
        with jax.numpy_rank_promotion("allow"):
            theirs = jax.tree.map(
                lambda a, b: jnp.asarray(a, b.dtype), their_reset(env, key), state
            )
        start = state, theirs, observation
        return jax.lax.scan(one, start, jax.random.split(jax.random.key(7), steps))[1]

    return jax.tree.map(np.asarray, run(jax.random.key(3)))


def first_end(name: str) -> int | None:
    """The step at which the played episode ends, by their account."""
    ends = np.flatnonzero(played(name).theirs["over"])
    return int(ends[0]) if ends.size else None


def alone(name: str) -> Any:
    """A parameter whose tests are run in one process, so that the environment is compiled once."""
    marks = [pytest.mark.xdist_group(f"bridge {name}")]
    return pytest.param(name, marks=marks if name in QUICK else [*marks, pytest.mark.slow])


@cache
def begun(name: str) -> Any:
    """How to begin an episode, compiled."""
    return jax.jit(get_env(name).reset)


every = pytest.mark.parametrize("name", [*map(alone, ENVIRONMENTS)])


# --- The contract of every environment ----------------------------------------------------------


@every
def test_shapes_and_types_are_those_of_the_spec(name):
    env = get_env(name)
    spec = env.spec
    run = played(name)
    time = len(run.action)
    for seen in (run.observation, run.timestep.observation, run.timestep.final):
        assert seen.obs.shape == (time, spec.agents, spec.obs)
        assert seen.state.shape == (time, spec.state)
        assert seen.avail.shape == (time, spec.agents, spec.max_actions)
        assert (seen.obs.dtype, seen.state.dtype, seen.avail.dtype) == (
            np.float32,
            np.float32,
            bool,
        )
        assert np.isfinite(seen.obs).all()
        assert seen.avail.any(-1).all()
        for agent, actions in enumerate(spec.actions):
            assert not seen.avail[:, agent, actions:].any()
    assert run.timestep.reward.shape == (time, spec.agents)
    assert run.timestep.reward.dtype == np.float32
    for flag in (run.timestep.terminated, run.timestep.truncated):
        assert (flag.shape, flag.dtype) == ((time,), bool)


@every
def test_states_are_alike_from_step_to_step(name):
    env = get_env(name)
    state, observation = jax.eval_shape(env.reset, jax.random.key(0))
    action = jax.eval_shape(lambda seen: act(env, jax.random.key(0), seen), observation)
    after, _ = jax.eval_shape(env.step, jax.random.key(0), state, action)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype, old.weak_type) == (new.shape, new.dtype, False)
        assert not jnp.issubdtype(old.dtype, jax.dtypes.prng_key), "checkpoints hold no keys"


@every
def test_rewards_are_of_the_kind_that_the_spec_says(name):
    reward = played(name).timestep.reward
    same = (reward == reward[:, :1]).all()
    assert get_env(name).spec.reward == ("individual" if name in INDIVIDUAL else "common")
    if get_env(name).spec.reward == "common":
        assert same


@every
def test_ends_are_theirs_told_apart(name):
    """Over where they say so; truncated at the limit and nowhere else."""
    run, limit = played(name), get_env(name).spec.limit
    end = first_end(name)
    assert end is not None, "play longer"
    terminated, truncated = run.timestep.terminated[: end + 1], run.timestep.truncated[: end + 1]
    assert not (terminated | truncated)[:-1].any()
    assert terminated[-1] ^ truncated[-1]
    assert end + 1 <= limit
    assert terminated[-1] or end + 1 == limit
    if name in ENDS:
        assert terminated[-1] == ENDS[name]


def test_an_end_of_its_own_at_the_last_step_is_no_truncation():
    """In the riddle with 3 prisoners the 6th step is the last; to tell ends it."""
    env = made("jaxmarl:switch_riddle")
    step = jax.jit(env.step)
    for last, terminated in ((2, True), (0, False)):
        state, _ = jax.jit(env.reset)(jax.random.key(0))
        for time in range(6):
            action = jnp.full(3, last if time == 5 else 0)
            state, timestep = step(jax.random.key(time), state, action)
            assert bool(timestep.terminated | timestep.truncated) == (time == 5)
        assert (bool(timestep.terminated), bool(timestep.truncated)) == (terminated, not terminated)


# --- They stay what they are --------------------------------------------------------------------


@every
def test_what_is_seen_and_earned_is_theirs_to_the_bit(name):
    env, run = get_env(name), played(name)
    end, ours, theirs = first_end(name), run.timestep, run.theirs
    until = slice(0, end + 1)
    reward = theirs["reward"][until].reshape(end + 1, -1).astype(np.float32)
    reward = np.broadcast_to(reward, (end + 1, env.spec.agents))
    np.testing.assert_array_equal(ours.reward[until], reward)
    if ENVIRONMENTS[name][0].startswith("jaxmarl") or env.info.per_agent == ("agents_view",):
        for agent, seen in enumerate(theirs["obs"]):
            seen = seen[until].reshape(end + 1, -1).astype(np.float32)
            own = ours.final.obs[until, agent]
            np.testing.assert_array_equal(own[:, : seen.shape[1]], seen)
            assert not own[:, seen.shape[1] :].any()
    if theirs.get("state") is not None:
        np.testing.assert_array_equal(ours.final.state[until], theirs["state"][until])
    if "mask" in theirs:
        np.testing.assert_array_equal(ours.final.avail[until], theirs["mask"][until])
    for own, their in zip(
        jax.tree.leaves(run.state), jax.tree.leaves(theirs["inner"]), strict=True
    ):
        np.testing.assert_array_equal(own[until], their[until])


@every
def test_everything_follows_from_the_key(name):
    first, again, other = (begun(name)(jax.random.key(seed)) for seed in (3, 3, 4))
    assert all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(again)))
    if not name.startswith("overcooked_v2"):  # Its cooks begin where the layout says.
        assert not all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(other)))


@every
def test_states_can_be_drawn(name):
    env = get_env(name)
    state, _ = begun(name)(jax.random.key(3))
    after = jax.tree.map(lambda leaf: leaf[0], played(name).state)
    pictures = [env.render(state), env.render(jax.tree.map(jnp.asarray, after))]
    for picture in pictures:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        assert picture.std() > 1
    assert pictures[0].shape == pictures[1].shape


# --- What is particular -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.xdist_group("bridge SMAX-3m")
def test_the_dead_do_not_take_part_and_can_only_stop():
    run, env = played("SMAX-3m"), get_env("SMAX-3m")
    seen = run.timestep.final
    units = run.theirs["inner"].state.unit_alive
    np.testing.assert_array_equal(seen.alive, units[:, : env.spec.agents])
    dead = ~seen.alive
    assert dead.any(), "play longer"
    stop = np.arange(env.spec.max_actions) == 4
    assert (seen.avail[dead] == stop).all()


def test_a_battle_is_won_where_the_environment_pays_for_it():
    """One side is at its last breath, first the enemies, and allies aim wherever they can."""
    env = made("jaxmarl:SMAX-3m", won_battle_bonus=100.0)

    def fight(health, key):
        state, seen = env.reset(key)
        units = state.state.replace(unit_health=health)
        state = state.replace(state=units)

        def step(carry, key):
            state, seen, over = carry
            aims = seen.avail & (jnp.arange(env.spec.max_actions) > 4)[None]
            east = jnp.where(seen.avail[:, 1], 1, 4)
            action = jnp.where(aims.any(-1), aims.argmax(-1), east)
            state, timestep = env.step(key, state, action)
            ends = timestep.terminated | timestep.truncated
            row = timestep.won, timestep.reward.max(), timestep.terminated
            return (state, timestep.observation, over | ends), (row, over)

        _, (rows, over) = jax.lax.scan(step, (state, seen, False), jax.random.split(key, 100))
        return rows, over

    for health, expected in (([45.0] * 3 + [0.1] * 3, 1), ([0.1] * 3 + [45.0] * 3, 0)):
        rows, over = jax.jit(fight)(jnp.array(health), jax.random.key(0))
        won, reward, terminated = jax.tree.map(lambda x, over=over: np.asarray(x)[~over], rows)
        np.testing.assert_array_equal(won, reward >= 100)
        assert terminated[-1]
        assert won[-1] == expected


@pytest.mark.slow
@pytest.mark.xdist_group("bridge hanabi")
def test_hanabi_is_played_in_turn():
    avail = played("hanabi").observation.avail
    idle = avail[..., -1]
    assert (idle.sum(-1) == 1).all()
    assert (avail[idle].sum(-1) == 1).all()


def test_the_predators_alone_are_played():
    spec = get_env("facmac").spec
    assert (spec.agents, spec.continuous) == (3, True)
    assert spec.actions == (5, 5, 5)


def test_continuous_actions_are_scaled_to_the_environment():
    env = get_env("speaker continuous")
    assert env.spec.actions == (3, 5)
    _, observation = env.reset(jax.random.key(0))
    assert observation.avail.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    action = jnp.array([[-1.0, 0.0, 1.0, 9.0, 9.0], [-1.0, 1.0, 0.5, -0.5, 0.0]])
    joint = env.native_actions(action)
    np.testing.assert_allclose(joint["speaker_0"], [0, 0.5, 1])
    np.testing.assert_allclose(joint["listener_0"], [0, 1, 0.75, 0.25, 0.5])


@pytest.mark.slow
def test_names_are_those_that_their_users_know():
    for family, bridge in (("jaxmarl", jaxmarl), ("jumanji", jumanji)):
        for name in bridge.EXAMPLES:
            assert made(f"{family}:{name}").spec.id == f"{family}:{name}"


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        ("jaxmarl:MPE_simple_spred_v3", {}, "did you mean 'MPE_simple_spread_v3'"),
        ("jaxmarl:SMAX-3s5", {}, "unknown scenario of jaxmarl:SMAX '3s5'; did you mean '3s5z'"),
        ("jaxmarl:SMAX", {}, "plays both sides; name a scenario"),
        ("jaxmarl:overcooked", {}, "unknown layout of jaxmarl:overcooked ''; known: "),
        ("jaxmarl:hanabi-5", {}, "did you mean 'hanabi'"),
        ("jaxmarl:MPE_simple_tag_v3", {}, "sets its agents against each other"),
        ("jaxmarl:SMAX-3m", {"max_step": 5}, "did you mean 'max_steps'"),
        ("jaxmarl:SMAX-3m", {"max_steps": 0}, "max_steps 0: expected"),
        ("jaxmarl:MPE_simple_facmac_3a_v1", {"max_steps": 5}, "has no options"),
        ("jaxmarl:MPE_simple_spread_v3", {"action_type": "continuous"}, "Continuous"),
        ("jaxmarl:MPE_simple_spread_v3", {"local_ratio": 2.0}, "cannot be made with local_ratio=2"),
        ("jumanji:RobotWarehouse-v1", {}, "did you mean 'RobotWarehouse-v0'"),
        ("jumanji:Connector-v2", {"agents": 2}, "did you mean 'num_agents'"),
        ("jumanji:Connector-v2", {"num_agents": 0}, "expected 1 or more"),
        ("jumanji:LevelBasedForaging-v0", {"grid_size": 5}, "cannot be made with grid_size=5"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line(id, options, message):
    with pytest.raises(UserError) as told:
        made(id, **options)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("id", "package"),
    [("jaxmarl:SMAX-3m", "jaxmarl"), ("jumanji:Connector-v2", "jumanji")],
)
def test_what_is_not_installed_is_told_with_the_cure(id, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=re.escape(install_command(package))):
        make_env(id)


# --- They are trained on ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [*map(alone, ["SMAX-3s5z", "spread", "warehouse"])])
def test_agents_train(name):
    env = get_env(name)
    config = recipes.make("perla-ippo", **SMALL)
    steps = 2 * config.num_envs * config.length(env.spec.limit)
    trainer = Trainer(env, config, seeds=(0,), steps=steps, eval_episodes=2)
    population, (after,) = trainer.advance(trainer.init(), steps)
    assert after["step"] == steps
    assert np.isfinite(after["return"])
    assert 1 <= after["episode_length"] <= env.spec.limit
    weights = trainer.export(population)
    assert all(
        map(
            np.array_equal,
            jax.tree.leaves(trainer.export(trainer.restore(weights))),
            jax.tree.leaves(weights),
        )
    )


@pytest.mark.parametrize("name", [*map(alone, ["riddle", "connector"])])
def test_episodes_follow_each_other_in_the_wrapper(name):
    env = get_env(name)
    copies = AutoReset(env, 8)

    @jax.jit
    def run(key):
        def one(carry, key):
            state, observation = carry
            key_action, key_step = jax.random.split(key)
            state, timestep = copies.step(key_step, state, act(env, key_action, observation))
            return (state, timestep.observation), timestep

        return jax.lax.scan(one, copies.reset(key), jax.random.split(key, 60))[1]

    timestep = run(jax.random.key(0))
    ended = np.asarray(timestep.terminated | timestep.truncated)
    assert ended.sum(0).min() >= 60 // env.spec.limit
    for copy in range(8):
        lengths = np.diff(np.flatnonzero(ended[:, copy]), prepend=-1)
        assert lengths.max() <= env.spec.limit
    differs = (np.asarray(timestep.final.obs) != np.asarray(timestep.observation.obs)).any((2, 3))
    assert differs.any()
    assert (differs <= ended).all()
