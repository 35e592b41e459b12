"""Jumanji's cooperative environments (Bonnet et al., 2024): `jumanji:RobotWarehouse-v0`.

Every transition is made by jumanji's `step`. Some environments report their time limit as a
termination, the bridge as a truncation. To tell a terminal state at the limit from the limit
itself, environments are stepped with their clock set back, and the bridge counts the steps.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from perla.config import Count, NonNegative
from perla.envs.bridges import common, optional
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.errors import UserError, nearest
from perla.plugins import install_command
from perla.types import Array, Float, Int, PRNGKeyArray

EXAMPLES = {
    "RobotWarehouse-v0": "robots bring requested shelves; it ends where two collide",
    "LevelBasedForaging-v0": "jumanji's foraging, whose rules are not those of lbf:",
    "Connector-v2": "agents lay wires that may not cross",
    "Cleaner-v0": "agents clean a maze together",
}
"""Names of environments, with a description."""
REQUIRES = install_command("jumanji")

PAST = -(2**30)
"""A clock value that is far from every limit."""


@dataclass(frozen=True)
class EnvInfo:
    """Facts about an environment that jumanji does not provide."""

    package: str
    """The name of its package in `jumanji.environments`."""
    cls: str
    """The name of its class."""
    reward: Literal["common", "individual"]
    per_agent: tuple[str, ...]
    """Fields of an observation that have a row for each agent."""
    shared: tuple[str, ...]
    """Fields of an observation that all agents have in common."""
    generator: tuple[str, Mapping[str, Any]]
    """The class that samples first states, and its arguments in jumanji's registry."""
    options: Mapping[str, Any]
    """The types of the environment's own arguments."""
    viewer: tuple[str, Callable[[Any], tuple[Any, ...]]]
    """The class that draws states, and a function for its arguments."""
    drawn: Callable[[Any], Any] = lambda state: state
    """The part of the state that the viewer takes."""


ENVIRONMENTS: dict[str, EnvInfo] = {
    "RobotWarehouse-v0": EnvInfo(
        "routing.robot_warehouse",
        "RobotWarehouse",
        "common",
        per_agent=("agents_view",),
        shared=(),
        generator=(
            "RandomGenerator",
            {
                "shelf_rows": 2,
                "shelf_columns": 3,
                "column_height": 8,
                "num_agents": 4,
                "sensor_range": 1,
                "request_queue_size": 8,
            },
        ),
        options={"time_limit": Count},
        viewer=("RobotWarehouseViewer", lambda env: (env.grid_size, env.goals)),
    ),
    "LevelBasedForaging-v0": EnvInfo(
        "routing.lbf",
        "LevelBasedForaging",
        "individual",
        per_agent=("agents_view",),
        shared=(),
        generator=(
            "RandomGenerator",
            {
                "grid_size": 8,
                "fov": 8,
                "num_agents": 2,
                "num_food": 2,
                "max_agent_level": 2,
                "force_coop": True,
            },
        ),
        options={
            "time_limit": Count,
            "grid_observation": bool,
            "normalize_reward": bool,
            "penalty": NonNegative,
        },
        viewer=("LevelBasedForagingViewer", lambda env: (env.grid_size,)),
    ),
    "Connector-v2": EnvInfo(
        "routing.connector",
        "Connector",
        "individual",
        per_agent=(),
        shared=("grid",),
        generator=("RandomWalkGenerator", {"grid_size": 10, "num_agents": 10}),
        options={"time_limit": Count},
        viewer=("ConnectorViewer", lambda env: ("Connector", env.num_agents)),
        drawn=lambda state: state.grid,
    ),
    "Cleaner-v0": EnvInfo(
        "routing.cleaner",
        "Cleaner",
        "common",
        per_agent=("agents_locations",),
        shared=("grid", "agents_locations"),
        generator=("RandomGenerator", {"num_rows": 10, "num_cols": 10, "num_agents": 3}),
        options={"time_limit": Count, "penalty_per_timestep": NonNegative},
        viewer=("CleanerViewer", lambda env: ("Cleaner",)),
    ),
}
"""The supported environments."""


@dataclass(frozen=True, eq=False)
class Jumanji:
    """An environment of jumanji as an [`Env`][perla.envs.protocol.Env], with jumanji's state.

    The state holds the random key of the episode, so `step` does not use its key.
    """

    spec: Spec
    env: Any
    """Jumanji's environment."""
    info: EnvInfo

    def reset(self, key: PRNGKeyArray) -> tuple[Any, Observation]:
        """Begin an episode."""
        with common.allow_broadcasting():
            state, timestep = self.env.reset(common.raw_key(key))
            return common.as_arrays(state), observe(self.info, timestep.observation)

    def step(
        self, key: PRNGKeyArray, state: Any, action: Int[Array, " agent"]
    ) -> tuple[Any, TimeStep]:
        """Make one transition with the environment's own `step`. `key` is not used."""
        time = state.step_count + 1
        set_back = state.replace(step_count=jnp.full_like(state.step_count, PAST))
        with common.allow_broadcasting():
            state, timestep = self.env.step(set_back, action)
            observation = observe(self.info, timestep.observation)
            terminated = timestep.last()
        reward = jnp.asarray(timestep.reward, jnp.float32)
        return common.as_arrays(state.replace(step_count=time)), TimeStep(
            observation=observation,
            reward=jnp.broadcast_to(reward, (self.spec.agents,)),
            terminated=terminated,
            truncated=(time >= self.spec.limit) & ~terminated,
            final=observation,
        )

    def render(self, state: Any) -> np.ndarray:
        """Jumanji's own image of `state`: uint8 `[height, width, 3]`."""
        import matplotlib.pyplot

        matplotlib.pyplot.switch_backend("agg")  # The viewers would open a window.
        module = importlib.import_module(f"jumanji.environments.{self.info.package}.viewer")
        name, arguments = self.info.viewer
        viewer = getattr(module, name)(*arguments(self.env), render_mode="rgb_array")
        with common.allow_broadcasting(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = np.array(viewer.render(self.info.drawn(state)))[..., :3]
        viewer.close()
        return image


def observe(info: EnvInfo, native: Any) -> Observation:
    """The observation from jumanji's `native` one, without its clock."""
    agents = native.action_mask.shape[0]
    per_agent = [_flat(getattr(native, name), agents) for name in info.per_agent]
    shared = [_flat(getattr(native, name), 1) for name in info.shared]
    repeated = [jnp.broadcast_to(part, (agents, part.shape[1])) for part in shared]
    state = [part.reshape(-1) for part in (*shared, *per_agent)]
    # Fields that are shared as well are in the state already.
    if set(info.per_agent) <= set(info.shared):
        state = state[: len(shared)]
    return Observation(
        obs=jnp.concatenate([*per_agent, *repeated], -1),
        state=jnp.concatenate(state),
        avail=native.action_mask.astype(bool),
    )


def _flat(part: Array, rows: int) -> Float[Array, "row feature"]:
    return part.reshape(rows, -1).astype(jnp.float32)


def make_env(name: str, /, **options: Any) -> Jumanji:
    """The environment `name` of jumanji's registry, such as `RobotWarehouse-v0`.

    Options are the arguments of the environment and of its generator that are plain values
    (`num_agents`, `time_limit`, …); the others are as in jumanji's registry. Raises `UserError` for
    an unknown name or option, or if jumanji is not installed.
    """
    if name not in ENVIRONMENTS:
        raise nearest(name, ENVIRONMENTS, what="environment of jumanji")
    info, id = ENVIRONMENTS[name], f"jumanji:{name}"
    optional.import_optional("jumanji")
    generator, defaults = info.generator
    known = {argument: type(value) for argument, value in defaults.items()} | dict(info.options)
    arguments = common.check_options(options, known, of=id)
    for argument, value in arguments.items():
        if known[argument] is int and value < 1:
            raise UserError(f"{id}: {argument} = {value}: expected 1 or more")

    def build(**arguments: Any) -> Any:
        package = f"jumanji.environments.{info.package}"
        generators = importlib.import_module(f"{package}.generator")
        generated = {name: arguments.pop(name, value) for name, value in defaults.items()}
        cls = getattr(importlib.import_module(f"{package}.env"), info.cls)
        return cls(generator=getattr(generators, generator)(**generated), **arguments)

    env = common.build_env(id, build, **arguments)
    with common.allow_broadcasting():
        _, timestep = jax.eval_shape(env.reset, jax.eval_shape(common.raw_key, jax.random.key(0)))
        observation = jax.eval_shape(partial(observe, info), timestep.observation)
        actions = tuple(int(number) for number in np.asarray(env.action_spec.num_values))
    spec = Spec(
        id=id,
        agents=len(actions),
        obs=observation.obs.shape[1],
        state=observation.state.shape[0],
        actions=actions,
        limit=int(env.time_limit),
        early_truncation=False,
        reward=info.reward,
        rules={"jumanji": optional.version("jumanji"), "options": arguments},
    )
    return Jumanji(spec, env, info)
