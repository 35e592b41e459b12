"""JaxMARL's cooperative worlds (Rutherford et al., 2024), as they are: `jaxmarl:SMAX-3s5z`.

The world's own `step_env` makes every transition; episodes follow each other in perla's
`AutoReset`, never in JaxMARL's `step`. JaxMARL reports a time limit as an ordinary end. Here it is
a truncation, and an episode that ends at its last step for a reason of its own has terminated: a
world that can do so is stepped with its clock set back, and the steps are counted outside.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from perla.config import Count
from perla.envs.bridges import common, optional
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.envs.render import Disc, draw_plane, draw_text
from perla.errors import UserError, nearest
from perla.types import Array, Bool, Float, Int, PRNGKeyArray

EXAMPLES = {
    "SMAX-3s5z": "SMAX against its scripted enemy; any scenario: -3m, -2s3z, -smacv2_5_units",
    "MPE_simple_spread_v3": "particles that cover landmarks; also MPE_simple_reference_v3, …",
    "MPE_simple_facmac_3a_v1": "three predators with continuous actions; also _6a_v1, _9a_v1",
    "overcooked-cramped_room": "two cooks; any layout of JaxMARL: -coord_ring, -forced_coord, …",
    "overcooked_v2-cramped_room": "the same, revised; any layout of it",
    "hanabi": "two to five players, a card game of hints",
    "switch_riddle": "prisoners who share a light bulb",
}
"""Names of worlds, and what they are."""

PAST = -(2**30)
"""A clock set back so far that no limit is in sight."""

REFUSED = dict.fromkeys(
    ("MPE_simple_adversary_v3", "MPE_simple_push_v3", "MPE_simple_tag_v3"),
    "sets its agents against each other",
) | {
    "MPE_simple_crypto_v3": "sets its agents against each other",
    "MPE_simple_world_comm_v3": "sets its agents against each other",
    "MPE_simple_v3": "has one agent",
    "SMAX": "plays both sides; name a scenario, such as SMAX-3s5z",
    "storm": "is a social dilemma, and learners here cooperate",
    "coin_game": "is a social dilemma, and learners here cooperate",
}
"""Worlds of JaxMARL that are none of ours, and why."""


def _pictured(env: Any, state: Any) -> np.ndarray:
    """What the world's own `render` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        env.render(state)
    return draw_text(printed.getvalue())


def _particles(env: Any, state: Any) -> np.ndarray:
    """Agents and landmarks on a square four units wide, in JaxMARL's colours."""
    return draw_plane(
        [
            Disc(float((x + 2) / 4), float((y + 2) / 4), float(radius) / 4, tuple(colour))
            for (x, y), radius, colour in zip(
                np.asarray(state.p_pos), np.asarray(env.rad), env.colour, strict=True
            )
        ]
    )


def _units(env: Any, state: Any) -> np.ndarray:
    """Units that live, allies blue and enemies orange, by the letter of their kind."""
    units, size = state.state, np.array([env.map_width, env.map_height])
    at = np.asarray(units.unit_positions) / size
    kinds, alive = np.asarray(units.unit_types), np.asarray(units.unit_alive)
    return draw_plane(
        [
            Disc(
                float(x),
                float(y),
                float(env.unit_type_radiuses[kind]) / env.map_width,
                (0, 114, 178) if unit < env.num_allies else (230, 159, 0),
                env.unit_type_shorthands[kind],
            )
            for unit, ((x, y), kind) in enumerate(zip(at, kinds, strict=True))
            if alive[unit]
        ]
    )


def _won(env: Any, state: Any) -> Bool[Array, ""]:
    """No enemy lives and an ally does: to die together is a draw."""
    alive = state.state.unit_alive
    return alive[: env.num_allies].any() & ~alive[env.num_allies :].any()


def _kitchen(env: Any, state: Any) -> np.ndarray:
    """JaxMARL's own picture of a kitchen."""
    from jaxmarl.viz.overcooked_visualizer import OvercookedVisualizer

    border = env.agent_view_size - 2
    grid = np.asarray(state.maze_map)[border:-border, border:-border]
    return np.asarray(
        OvercookedVisualizer._render_grid(
            grid,
            agent_dir_idx=np.asarray(state.agent_dir_idx),
            agent_inv=np.asarray(state.agent_inv),
        ),
        dtype=np.uint8,
    )


def _kitchen_v2(env: Any, state: Any) -> np.ndarray:
    """JaxMARL's own picture of a kitchen of the second version."""
    import jax
    from jaxmarl.viz.overcooked_v2_visualizer import OvercookedV2Visualizer

    sequence = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], state)
    return np.asarray(OvercookedV2Visualizer().render_sequence(sequence)[0], dtype=np.uint8)


def _scenarios() -> Mapping[str, Any]:
    from jaxmarl.environments.smax.smax_env import MAP_NAME_TO_SCENARIO

    return MAP_NAME_TO_SCENARIO


def _layouts() -> Mapping[str, Any]:
    from jaxmarl.environments.overcooked import overcooked_layouts

    return overcooked_layouts


def _layouts_v2() -> Mapping[str, Any]:
    from jaxmarl.environments.overcooked_v2 import overcooked_v2_layouts

    return overcooked_v2_layouts


def _hanabi_limit(env: Any) -> int:
    """Turns that no game exceeds: every card drawn, the last round, and a hint for every token
    there is at first, or that a discard or a finished colour gives back."""
    drawn = env.deck_size - env.num_agents * env.hand_size
    return int(2 * drawn + env.num_agents + env.max_info_tokens + env.num_colors)


@dataclass(frozen=True)
class EnvInfo:
    """What there is to know of a world beyond what JaxMARL says of it."""

    id: str
    """What JaxMARL's `make` calls it."""
    reward: Literal["common", "individual"]
    picture: Callable[[Any, Any], np.ndarray]
    """Draws a state."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that it takes, and of what type."""
    variants: tuple[str, Callable[[], Mapping[str, Any]]] | None = None
    """The argument that the name's second part stands for, and its values by name."""
    agents: Callable[[Any], Sequence[str]] = lambda env: env.agents
    """Who is played by the learner. The rest follow a script."""
    limit: Callable[[Any], int] = lambda env: env.max_steps
    """Steps after which an episode is over at the latest."""
    ends: bool = False
    """Whether episodes may end before that. If so, nobody sees the time."""
    legal: str = ""
    """The method that tells legal moves, if there is one."""
    alive: Callable[[Any], Bool[Array, " unit"]] | None = None
    """Who lives, in a world where agents die: learners first."""
    won: Callable[[Any, Any], Bool[Array, ""]] | None = None
    """Whether an episode that ends in a state is won, in a world where one wins or loses."""


_MPE = {"max_steps": Count}
_SPREAD = _MPE | {"local_ratio": float, "action_type": Literal["Discrete", "Continuous"]}
_KITCHEN = {"max_steps": Count, "random_reset": bool}


def _mpe(id: str, reward: Literal["common", "individual"], **more: Any) -> EnvInfo:
    # MPE compares its clock with the limit before it moves it: one step more.
    late = {"limit": lambda env: env.max_steps + 1, "picture": _particles}
    return EnvInfo(id, reward, **(late | {"options": _MPE} | more))


ENVIRONMENTS: dict[str, EnvInfo] = {
    "SMAX": EnvInfo(
        "HeuristicEnemySMAX",
        "common",
        _units,
        options={
            "max_steps": Count,
            "world_steps_per_env_step": Count,
            "see_enemy_actions": bool,
            "walls_cause_death": bool,
            "won_battle_bonus": float,
            "enemy_shoots": bool,
            "attack_mode": Literal["closest", "random"],
            "action_type": Literal["discrete", "continuous"],
            "observation_type": Literal["unit_list", "conic"],
        },
        variants=("scenario", _scenarios),
        limit=lambda env: env.max_steps + 1,  # It, too, compares before it counts.
        ends=True,
        legal="get_avail_actions",
        alive=lambda state: state.state.unit_alive,
        won=_won,
    ),
    "MPE_simple_spread_v3": _mpe(
        "MPE_simple_spread_v3",
        "individual",
        options=_SPREAD | {"num_agents": Count, "num_landmarks": Count},
    ),
    "MPE_simple_reference_v3": _mpe("MPE_simple_reference_v3", "individual", options=_SPREAD),
    "MPE_simple_speaker_listener_v4": _mpe(
        "MPE_simple_speaker_listener_v4",
        "common",
        options=_MPE | {"action_type": Literal["Discrete", "Continuous"]},
    ),
    "MPE_simple_facmac_v1": _mpe(
        "MPE_simple_facmac_v1",
        "common",
        options=_MPE
        | {
            "num_good_agents": Count,
            "num_adversaries": Count,
            "num_landmarks": Count,
            "view_radius": float,
            "score_function": Literal["sum", "min"],
        },
        agents=lambda env: env.adversaries,
    ),
    **{
        f"MPE_simple_facmac_{n}a_v1": _mpe(
            f"MPE_simple_facmac_{n}a_v1",
            "common",
            options={},
            agents=lambda env: env.adversaries,
        )
        for n in (3, 6, 9)
    },
    "overcooked": EnvInfo(
        "overcooked", "common", _kitchen, options=_KITCHEN, variants=("layout", _layouts)
    ),
    "overcooked_v2": EnvInfo(
        "overcooked_v2",
        "common",
        _kitchen_v2,
        options=_KITCHEN
        | {
            "agent_view_size": Count,
            "random_agent_positions": bool,
            "start_cooking_interaction": bool,
            "negative_rewards": bool,
            "sample_recipe_on_delivery": bool,
            "indicate_successful_delivery": bool,
        },
        variants=("layout", _layouts_v2),
    ),
    "hanabi": EnvInfo(
        "hanabi",
        "common",
        _pictured,
        options={
            "num_agents": Count,
            "num_colors": Count,
            "num_ranks": Count,
            "hand_size": Count,
            "max_info_tokens": Count,
            "max_life_tokens": Count,
        },
        limit=_hanabi_limit,
        ends=True,
        legal="get_legal_moves",
    ),
    "switch_riddle": EnvInfo(
        "switch_riddle",
        "common",
        _pictured,
        options={"num_agents": Count, "reward_all_die": float, "reward_all_live": float},
        ends=True,
    ),
}
"""Every world that there is a bridge to."""


@dataclass(frozen=True, eq=False)
class JaxMARL:
    """A world of JaxMARL as an [`Env`][perla.envs.protocol.Env]; its state is JaxMARL's own."""

    spec: Spec
    env: Any
    """JaxMARL's environment."""
    info: EnvInfo

    def reset(self, key: PRNGKeyArray) -> tuple[Any, Observation]:
        """Begin an episode."""
        with common.allow_broadcasting():
            seen, state = self.env.reset(common.raw_key(key))
            state = common.as_arrays(state)
            return state, self._observe(seen, state)

    def step(
        self,
        key: PRNGKeyArray,
        state: Any,
        action: Int[Array, " agent"] | Float[Array, "agent action"],
    ) -> tuple[Any, TimeStep]:
        """Make one transition, by the environment's own `step_env`."""
        time = clock(state)
        if self.info.ends:
            state = at(state, step=jnp.full_like(time, PAST))
        with common.allow_broadcasting():
            seen, state, reward, done, _ = self.env.step_env(
                common.raw_key(key), state, self.played(action)
            )
            late = time + 1 >= self.info.limit(self.env)
            terminated = jnp.asarray(done["__all__"]) if self.info.ends else jnp.zeros((), bool)
            state = common.as_arrays(at(state, step=time + 1, done=terminated | late))
            observation = self._observe(seen, state)
            rewards = jnp.stack([reward[name] for name in self.info.agents(self.env)])
            won = self.info.won(self.env, state) if self.info.won else None
        return state, TimeStep(
            observation=observation,
            reward=rewards.astype(jnp.float32),
            terminated=terminated,
            truncated=late & ~terminated,
            final=observation,
            won=None if won is None else (won & terminated).astype(jnp.float32),
        )

    def render(self, state: Any) -> np.ndarray:
        """A picture of `state`: uint8 `[height, width, 3]`."""
        with common.allow_broadcasting():
            return self.info.picture(self.env, state)

    def played(
        self, action: Int[Array, " agent"] | Float[Array, "agent action"]
    ) -> dict[str, Array]:
        """What everyone does, by name and in the environment's own units."""
        learners = self.info.agents(self.env)
        joint = {}
        for index, name in enumerate(learners):
            joint[name] = action[index]
            if self.spec.continuous:
                space = self.env.action_space(name)
                own = action[index, : self.spec.actions[index]]
                joint[name] = common.scale_action(own, space.low, space.high)
        idle = jnp.zeros_like(joint[learners[0]])  # What a script follows asks for no action.
        return {name: joint.get(name, idle) for name in self.env.agents}

    def _observe(self, seen: Mapping[str, Array], state: Any) -> Observation:
        world, env, spec = self.info, self.env, self.spec
        learners = world.agents(env)
        own = [seen[name] for name in learners]
        whole = seen["world_state"] if "world_state" in seen else common.concatenate(own)
        avail = common.existing_actions(spec.actions)
        if world.legal and not spec.continuous:
            legal = getattr(env, world.legal)(state)
            avail &= common.pad_rows([legal[name] for name in learners]) > 0
        alive = world.alive(state)[: spec.agents] if world.alive else None
        return Observation(common.pad_rows(own), whole.astype(jnp.float32), avail, alive)


def clock(state: Any) -> Int[Array, ""]:
    """Steps that the episode has taken."""
    return jnp.asarray(state.state.step if hasattr(state, "state") else state.step)


def at(state: Any, **values: Array) -> Any:
    """`state` with other `values` of `step` or `done`, which some worlds keep one level deeper."""
    if hasattr(state, "state"):
        return state.replace(state=state.state.replace(**values))
    return state.replace(**values)


def make_env(name: str, /, **options: Any) -> JaxMARL:
    """The world of a name such as `MPE_simple_spread_v3`, `SMAX-3s5z` or `overcooked-coord_ring`.

    It is JaxMARL's own name, followed, where it comes in scenarios or layouts, by one of these;
    `SMAX-…` is JaxMARL's `HeuristicEnemySMAX`. Options are those arguments of the environment that
    are plain values. Raises `UserError` for a name or option that is none, and where JaxMARL is not
    installed.
    """
    import jax

    first, _, second = name.partition("-")
    if name in REFUSED:
        raise UserError(f"jaxmarl:{name} {REFUSED[name]}")
    if first not in ENVIRONMENTS:
        raise nearest(name, [*ENVIRONMENTS, *EXAMPLES], what="world of jaxmarl")
    world = ENVIRONMENTS[first]
    jaxmarl = optional.import_optional("jaxmarl")
    id = f"jaxmarl:{name}"
    arguments = common.check_options(options, world.options, of=id)
    if world.variants:
        argument, variants = world.variants
        if second not in variants():
            raise nearest(second, variants(), what=f"{argument} of jaxmarl:{first}")
        arguments[argument] = variants()[second]
    elif second:
        raise UserError(f"unknown world of jaxmarl {name!r}; did you mean {first!r}?")
    env = _built(id, jaxmarl, world, arguments, options)

    learners = world.agents(env)
    spaces = [env.action_space(name) for name in learners]
    continuous = hasattr(spaces[0], "low")
    actions = tuple(int(space.shape[0] if continuous else space.n) for space in spaces)
    with common.allow_broadcasting():
        seen, _ = jax.eval_shape(env.reset, jax.eval_shape(common.raw_key, jax.random.key(0)))
    sizes = [int(np.prod(seen[agent].shape)) for agent in learners]
    spec = Spec(
        id=id,
        agents=len(learners),
        obs=max(sizes),
        state=seen["world_state"].size if "world_state" in seen else sum(sizes),
        actions=actions,
        limit=world.limit(env),
        reward=world.reward,
        rules={"jaxmarl": optional.version("jaxmarl"), "environment": world.id, "options": options},
        continuous=continuous,
        mortal=world.alive is not None,
    )
    return JaxMARL(spec, env, world)


def _built(id: str, jaxmarl: Any, world: EnvInfo, arguments: Any, options: Any) -> Any:
    """JaxMARL's environment. What it refuses is told by the `options`, without the scenario."""
    fixed = {name: value for name, value in arguments.items() if name not in options}
    given = {name: value for name, value in arguments.items() if name in options}
    return common.build_env(id, lambda **chosen: jaxmarl.make(world.id, **fixed, **chosen), **given)
