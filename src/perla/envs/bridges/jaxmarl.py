"""JaxMARL's cooperative environments (Rutherford et al., 2024): `jaxmarl:SMAX-3s5z`.

Every transition is made by JaxMARL's `step_env`; episodes are reset by perla's `AutoReset`, not by
JaxMARL's `step`. JaxMARL reports its time limit as a termination, the bridge as a truncation. To
tell a terminal state at the limit from the limit itself, environments with terminal states are
stepped with their clock set back, and the bridge counts the steps.
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
from perla.plugins import install_command
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
"""Names of environments, with a description."""
REQUIRES = install_command("jaxmarl")

PAST = -(2**30)
"""A clock value that is far from every limit."""

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
"""Environments of JaxMARL that are not supported, and why."""


def _draw_printed(env: Any, state: Any) -> np.ndarray:
    """An image of the text that the environment's own `render` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        env.render(state)
    return draw_text(printed.getvalue())


def _draw_particles(env: Any, state: Any) -> np.ndarray:
    """MPE's agents and landmarks on a square four units wide, in JaxMARL's colours."""
    return draw_plane(
        [
            Disc(float((x + 2) / 4), float((y + 2) / 4), float(radius) / 4, tuple(colour))
            for (x, y), radius, colour in zip(
                np.asarray(state.p_pos), np.asarray(env.rad), env.colour, strict=True
            )
        ]
    )


def _draw_units(env: Any, state: Any) -> np.ndarray:
    """SMAX's living units, labelled by type: allies blue, enemies orange."""
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
    """True if all enemies are dead and an ally lives; otherwise it is a loss or a draw."""
    alive = state.state.unit_alive
    return alive[: env.num_allies].any() & ~alive[env.num_allies :].any()


def _draw_kitchen(env: Any, state: Any) -> np.ndarray:
    """JaxMARL's own image of Overcooked."""
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


def _draw_kitchen_v2(env: Any, state: Any) -> np.ndarray:
    """JaxMARL's own image of Overcooked v2."""
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
    """An upper bound on the turns of a game: one for every card drawn, the last round, and a hint
    for every token, at the start or returned by a discard or a finished colour."""
    drawn = env.deck_size - env.num_agents * env.hand_size
    return int(2 * drawn + env.num_agents + env.max_info_tokens + env.num_colors)


@dataclass(frozen=True)
class EnvInfo:
    """Facts about an environment that JaxMARL does not provide."""

    id: str
    """The name for JaxMARL's `make`."""
    reward: Literal["common", "individual"]
    draw: Callable[[Any, Any], np.ndarray]
    """Draws an image of a state."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The types of its options."""
    variants: tuple[str, Callable[[], Mapping[str, Any]]] | None = None
    """The argument named by the second part of an id, and its values by name."""
    agents: Callable[[Any], Sequence[str]] = lambda env: env.agents
    """The agents that are trained; all others are scripted."""
    limit: Callable[[Any], int] = lambda env: env.max_steps
    """The time limit in steps."""
    has_terminal_states: bool = False
    """Episodes may terminate before the limit. If so, no observation contains the time."""
    avail_method: str = ""
    """The name of the method that returns the action mask, if any."""
    alive: Callable[[Any], Bool[Array, " unit"]] | None = None
    """The mask of living units, trained agents first, if agents may die."""
    won: Callable[[Any, Any], Bool[Array, ""]] | None = None
    """True for a final state of an episode that is won, if episodes can be won."""


_MPE = {"max_steps": Count}
_SPREAD = _MPE | {"local_ratio": float, "action_type": Literal["Discrete", "Continuous"]}
_KITCHEN = {"max_steps": Count, "random_reset": bool}


def _mpe(id: str, reward: Literal["common", "individual"], **more: Any) -> EnvInfo:
    # MPE compares its clock with the limit before incrementing it, so episodes have one step more.
    defaults: dict[str, Any] = {
        "limit": lambda env: env.max_steps + 1,
        "draw": _draw_particles,
        "options": _MPE,
    }
    return EnvInfo(id, reward, **(defaults | more))


ENVIRONMENTS: dict[str, EnvInfo] = {
    "SMAX": EnvInfo(
        "HeuristicEnemySMAX",
        "common",
        _draw_units,
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
        limit=lambda env: env.max_steps + 1,  # As MPE, it compares before incrementing.
        has_terminal_states=True,
        avail_method="get_avail_actions",
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
        "overcooked", "common", _draw_kitchen, options=_KITCHEN, variants=("layout", _layouts)
    ),
    "overcooked_v2": EnvInfo(
        "overcooked_v2",
        "common",
        _draw_kitchen_v2,
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
        _draw_printed,
        options={
            "num_agents": Count,
            "num_colors": Count,
            "num_ranks": Count,
            "hand_size": Count,
            "max_info_tokens": Count,
            "max_life_tokens": Count,
        },
        limit=_hanabi_limit,
        has_terminal_states=True,
        avail_method="get_legal_moves",
    ),
    "switch_riddle": EnvInfo(
        "switch_riddle",
        "common",
        _draw_printed,
        options={"num_agents": Count, "reward_all_die": float, "reward_all_live": float},
        has_terminal_states=True,
    ),
}
"""The supported environments."""


@dataclass(frozen=True, eq=False)
class JaxMARL:
    """An environment of JaxMARL as an [`Env`][perla.envs.protocol.Env], with JaxMARL's state."""

    spec: Spec
    env: Any
    """JaxMARL's environment."""
    info: EnvInfo

    def reset(self, key: PRNGKeyArray) -> tuple[Any, Observation]:
        """Begin an episode."""
        with common.allow_broadcasting():
            observations, state = self.env.reset(common.raw_key(key))
            state = common.as_arrays(state)
            return state, self._observe(observations, state)

    def step(
        self,
        key: PRNGKeyArray,
        state: Any,
        action: Int[Array, " agent"] | Float[Array, "agent action"],
    ) -> tuple[Any, TimeStep]:
        """Make one transition with the environment's own `step_env`."""
        time, may_terminate = get_time(state), self.info.has_terminal_states
        if may_terminate:
            state = replace(state, step=jnp.full_like(time, PAST))
        with common.allow_broadcasting():
            observations, state, reward, done, _ = self.env.step_env(
                common.raw_key(key), state, self.native_actions(action)
            )
            at_limit = time + 1 >= self.info.limit(self.env)
            terminated = jnp.asarray(done["__all__"]) if may_terminate else jnp.zeros((), bool)
            state = common.as_arrays(replace(state, step=time + 1, done=terminated | at_limit))
            observation = self._observe(observations, state)
            rewards = jnp.stack([reward[name] for name in self.info.agents(self.env)])
            won = self.info.won(self.env, state) if self.info.won else None
        return state, TimeStep(
            observation=observation,
            reward=rewards.astype(jnp.float32),
            terminated=terminated,
            truncated=at_limit & ~terminated,
            final=observation,
            won=None if won is None else (won & terminated).astype(jnp.float32),
        )

    def render(self, state: Any) -> np.ndarray:
        """An image of `state`: uint8 `[height, width, 3]`."""
        with common.allow_broadcasting():
            return self.info.draw(self.env, state)

    def native_actions(
        self, action: Int[Array, " agent"] | Float[Array, "agent action"]
    ) -> dict[str, Array]:
        """The actions of all agents by name, continuous ones scaled to the environment's bounds."""
        trained = self.info.agents(self.env)
        actions = {}
        for index, name in enumerate(trained):
            actions[name] = action[index]
            if self.spec.continuous:
                space = self.env.action_space(name)
                unpadded = action[index, : self.spec.actions[index]]
                actions[name] = common.scale_action(unpadded, space.low, space.high)
        ignored = jnp.zeros_like(actions[trained[0]])  # Scripted agents ignore their action.
        return {name: actions.get(name, ignored) for name in self.env.agents}

    def _observe(self, observations: Mapping[str, Array], state: Any) -> Observation:
        info, env, spec = self.info, self.env, self.spec
        trained = info.agents(env)
        obs = [observations[name] for name in trained]
        global_state = (
            observations["world_state"]
            if "world_state" in observations
            else common.concatenate(obs)
        )
        avail = common.existing_actions(spec.actions)
        if info.avail_method and not spec.continuous:
            masks = getattr(env, info.avail_method)(state)
            avail &= common.pad_rows([masks[name] for name in trained]) > 0
        alive = info.alive(state)[: spec.agents] if info.alive else None
        return Observation(common.pad_rows(obs), global_state.astype(jnp.float32), avail, alive)


def get_time(state: Any) -> Int[Array, ""]:
    """The number of steps of the episode so far."""
    return jnp.asarray(state.state.step if hasattr(state, "state") else state.step)


def replace(state: Any, **values: Array) -> Any:
    """`state` with new `values` of `step` or `done`, which some environments keep in
    `state.state`."""
    if hasattr(state, "state"):
        return state.replace(state=state.state.replace(**values))
    return state.replace(**values)


def make_env(name: str, /, **options: Any) -> JaxMARL:
    """The environment of a name: `MPE_simple_spread_v3`, `SMAX-3s5z`, `overcooked-coord_ring`.

    It is JaxMARL's name, with the scenario or layout appended if the environment has several;
    `SMAX-…` is JaxMARL's `HeuristicEnemySMAX`. Options are the environment's arguments that are
    plain values. Raises `UserError` for an unknown name or option, or if JaxMARL is not installed.
    """
    import jax

    first, _, second = name.partition("-")
    if name in REFUSED:
        raise UserError(f"jaxmarl:{name} {REFUSED[name]}")
    if first not in ENVIRONMENTS:
        raise nearest(name, [*ENVIRONMENTS, *EXAMPLES], what="environment of jaxmarl")
    info = ENVIRONMENTS[first]
    jaxmarl = optional.import_optional("jaxmarl")
    id = f"jaxmarl:{name}"
    arguments = common.check_options(options, info.options, of=id)
    if info.variants:
        argument, variants = info.variants
        if second not in variants():
            raise nearest(second, variants(), what=f"{argument} of jaxmarl:{first}")
        arguments[argument] = variants()[second]
    elif second:
        raise UserError(f"unknown environment of jaxmarl {name!r}; did you mean {first!r}?")
    env = _build(id, jaxmarl, info, arguments, options)

    trained = info.agents(env)
    spaces = [env.action_space(name) for name in trained]
    continuous = hasattr(spaces[0], "low")
    actions = tuple(int(space.shape[0] if continuous else space.n) for space in spaces)
    with common.allow_broadcasting():
        shapes, _ = jax.eval_shape(env.reset, jax.eval_shape(common.raw_key, jax.random.key(0)))
    sizes = [int(np.prod(shapes[agent].shape)) for agent in trained]
    spec = Spec(
        id=id,
        agents=len(trained),
        obs=max(sizes),
        state=shapes["world_state"].size if "world_state" in shapes else sum(sizes),
        actions=actions,
        limit=info.limit(env),
        early_truncation=False,
        reward=info.reward,
        rules={"jaxmarl": optional.version("jaxmarl"), "environment": info.id, "options": options},
        continuous=continuous,
        mortal=info.alive is not None,
    )
    return JaxMARL(spec, env, info)


def _build(id: str, jaxmarl: Any, info: EnvInfo, arguments: Any, options: Any) -> Any:
    """JaxMARL's environment. An error message lists the `options`, but not the scenario."""
    fixed = {name: value for name, value in arguments.items() if name not in options}
    chosen = {name: value for name, value in arguments.items() if name in options}

    def make(**chosen: Any) -> Any:
        return jaxmarl.make(info.id, **fixed, **chosen)

    return common.build_env(id, make, **chosen)
