"""Jumanji's cooperative worlds (Bonnet et al., 2024), as they are: `jumanji:RobotWarehouse-v0`.

The world's own `step` makes every transition. Some of these worlds report their time limit as an
ordinary end. Here it is a truncation in all of them, and an episode that ends at its last step
for a reason of its own has terminated: the world is stepped with its clock set back, and the
steps are counted outside.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from perla.config import Count, NonNegative
from perla.envs.bridges import common, optional
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.errors import UserError, nearest
from perla.types import Array, Float, Int, PRNGKeyArray

EXAMPLES = {
    "RobotWarehouse-v0": "robots bring requested shelves; it ends where two collide",
    "LevelBasedForaging-v0": "jumanji's foraging, whose rules are not those of lbf:",
    "Connector-v2": "agents lay wires that may not cross",
    "Cleaner-v0": "agents clean a maze together",
}
"""Names of worlds, and what they are."""

PAST = -(2**30)
"""A clock set back so far that no limit is in sight."""


@dataclass(frozen=True)
class EnvInfo:
    """What there is to know of a world beyond what jumanji says of it."""

    where: str
    """Its package under `jumanji.environments`."""
    name: str
    """Its class."""
    reward: Literal["common", "individual"]
    own: tuple[str, ...]
    """Fields of an observation that have a row for each agent."""
    shared: tuple[str, ...]
    """Fields that all agents see alike."""
    generator: tuple[str, Mapping[str, Any]]
    """The class that draws first states, and its arguments as jumanji's registry has them."""
    options: Mapping[str, Any]
    """Arguments of the world itself, and of what type."""
    viewer: tuple[str, Callable[[Any], tuple[Any, ...]]]
    """The class that draws states, and its arguments for a world."""
    picture: Callable[[Any], Any] = lambda state: state
    """What the viewer draws of a state."""


ENVIRONMENTS: dict[str, EnvInfo] = {
    "RobotWarehouse-v0": EnvInfo(
        "routing.robot_warehouse",
        "RobotWarehouse",
        "common",
        own=("agents_view",),
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
        own=("agents_view",),
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
        own=(),
        shared=("grid",),
        generator=("RandomWalkGenerator", {"grid_size": 10, "num_agents": 10}),
        options={"time_limit": Count},
        viewer=("ConnectorViewer", lambda env: ("Connector", env.num_agents)),
        picture=lambda state: state.grid,
    ),
    "Cleaner-v0": EnvInfo(
        "routing.cleaner",
        "Cleaner",
        "common",
        own=("agents_locations",),
        shared=("grid", "agents_locations"),
        generator=("RandomGenerator", {"num_rows": 10, "num_cols": 10, "num_agents": 3}),
        options={"time_limit": Count, "penalty_per_timestep": NonNegative},
        viewer=("CleanerViewer", lambda env: ("Cleaner",)),
    ),
}
"""Every world that there is a bridge to."""


@dataclass(frozen=True, eq=False)
class Jumanji:
    """A world of jumanji as an [`Env`][perla.envs.protocol.Env]; its state is jumanji's own.

    What chance there is after an episode's beginning comes from the state: `step` needs no key.
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
        """Make one transition, by the environment's own `step`. `key` is not used."""
        time = state.step_count + 1
        past = state.replace(step_count=jnp.full_like(state.step_count, PAST))
        with common.allow_broadcasting():
            state, timestep = self.env.step(past, action)
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
        """Jumanji's own picture of `state`: uint8 `[height, width, 3]`."""
        import matplotlib.pyplot

        matplotlib.pyplot.switch_backend("agg")  # Its viewers would open a window.
        module = importlib.import_module(f"jumanji.environments.{self.info.where}.viewer")
        name, arguments = self.info.viewer
        viewer = getattr(module, name)(*arguments(self.env), render_mode="rgb_array")
        with common.allow_broadcasting(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = np.array(viewer.render(self.info.picture(state)))[..., :3]
        viewer.close()
        return picture


def observe(world: EnvInfo, seen: Any) -> Observation:
    """What jumanji shows, as rows of numbers. The clock is none of them."""
    agents = seen.action_mask.shape[0]
    own = [_flat(getattr(seen, name), agents) for name in world.own]
    shared = [_flat(getattr(seen, name), 1) for name in world.shared]
    every = [jnp.broadcast_to(part, (agents, part.shape[1])) for part in shared]
    whole = [part.reshape(-1) for part in (*shared, *own)]
    # What is shared and has a row for each agent is there already.
    if set(world.own) <= set(world.shared):
        whole = whole[: len(shared)]
    return Observation(
        obs=jnp.concatenate([*own, *every], -1),
        state=jnp.concatenate(whole),
        avail=seen.action_mask.astype(bool),
    )


def _flat(part: Array, rows: int) -> Float[Array, "row feature"]:
    return part.reshape(rows, -1).astype(jnp.float32)


def make_env(name: str, /, **options: Any) -> Jumanji:
    """The world that jumanji's registry calls `name`, such as `RobotWarehouse-v0`.

    Options are the arguments of the environment and of its generator that are plain values
    (`num_agents`, `time_limit`, …); others are as in jumanji's registry. Raises `UserError` for a
    name or option that is none, and where jumanji is not installed.
    """
    if name not in ENVIRONMENTS:
        raise nearest(name, ENVIRONMENTS, what="world of jumanji")
    world, id = ENVIRONMENTS[name], f"jumanji:{name}"
    optional.import_optional("jumanji")
    generator, defaults = world.generator
    known = {argument: type(value) for argument, value in defaults.items()} | dict(world.options)
    given = common.check_options(options, known, of=id)
    for argument, value in given.items():
        if known[argument] is int and value < 1:
            raise UserError(f"{id}: {argument} = {value}: expected 1 or more")

    def build(**given: Any) -> Any:
        module = importlib.import_module(f"jumanji.environments.{world.where}")
        generators = importlib.import_module(f"{module.__name__}.generator")
        first = {name: given.pop(name, value) for name, value in defaults.items()}
        kind = getattr(importlib.import_module(f"{module.__name__}.env"), world.name)
        return kind(generator=getattr(generators, generator)(**first), **given)

    env = common.build_env(id, build, **given)
    with common.allow_broadcasting():
        _, timestep = jax.eval_shape(env.reset, jax.eval_shape(common.raw_key, jax.random.key(0)))
        seen = jax.eval_shape(lambda seen: observe(world, seen), timestep.observation)
        actions = tuple(int(number) for number in np.asarray(env.action_spec.num_values))
    spec = Spec(
        id=id,
        agents=len(actions),
        obs=seen.obs.shape[1],
        state=seen.state.shape[0],
        actions=actions,
        limit=int(env.time_limit),
        reward=world.reward,
        rules={"jumanji": optional.version("jumanji"), "options": given},
    )
    return Jumanji(spec, env, world)
