"""Level-Based Foraging in pure JAX: agents on a grid gather food that may need several of them.

The rules are those of `lbforaging` (Christianos et al., 2020; Papoudakis et al., 2021), step for
step and number for number; `tests/test_foraging_oracle.py` plays both side by side. Differences are
documented where they occur; the main one is that the time limit truncates an episode here and
terminates it there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from perla.envs.foraging_ids import EXAMPLES as EXAMPLES
from perla.envs.foraging_ids import PAPER_MAPS, parse_name
from perla.envs.foraging_ids import PATTERNS as PATTERNS
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.envs.render import Grid, draw_grid
from perla.errors import UserError, nearest
from perla.types import Array, Bool, Float, Int, PRNGKeyArray

NONE, NORTH, SOUTH, WEST, EAST, LOAD = range(6)
"""The actions of every agent; north is the previous row, west the previous column."""


class State(NamedTuple):
    """The state of an episode, in arrays of fixed size.

    Foods stay in row-major order throughout the episode: an eaten food keeps its slot with level 0,
    and unused slots have level 0 and come last.
    """

    agent_row: Int[Array, "*batch agent"]
    agent_col: Int[Array, "*batch agent"]
    agent_level: Int[Array, "*batch agent"]
    food_row: Int[Array, "*batch food"]
    food_col: Int[Array, "*batch food"]
    food_level: Int[Array, "*batch food"]
    total: Int[Array, "*batch"]
    """F, the sum of the food levels at the episode's first step."""
    time: Int[Array, "*batch"]
    """Steps taken in this episode."""


@dataclass(frozen=True)
class Foraging:
    """Level-Based Foraging on a square grid, an [`Env`][perla.envs.protocol.Env].

    An agent walks (north, south, west, east), stays, or loads. A food is eaten where the levels
    of the loaders beside it sum to at least its own level; each loader i earns

        rᵢ = levelᵢ · level_food / (Σ_loaders level · F),

    so that clearing the grid returns exactly 1, summed over agents and steps. Loaders that fail
    lose `penalty` each. Episodes terminate when all food is gone.

    Moves are simultaneous. An impossible action (off the grid, onto food, loading beside no food)
    becomes NONE. An agent enters its target cell unless another agent has the same target; the
    target of NONE is the agent's own cell. Agents may therefore swap and follow each other. As in
    the original, agents can also overlap: if B stays because C has the same target as B, A may
    enter B's cell, because no other agent has it as its target.

    Raises `UserError` for impossible sizes or options.
    """

    size: int
    """Rows, and columns, of the grid."""
    players: int
    foods: int
    """Foods of an episode; fewer are placed if the grid has no room for all."""
    sight: int | None = None
    """Number of cells seen in each direction; None: the whole grid."""
    coop: bool = False
    """Every food's level is S, the sum of the three lowest agent levels; otherwise it is random."""
    version: Literal[2, 3] = 2
    """Food levels without `coop`: version 2 samples from 1..S-1 (1 if S is 1), as lbforaging 1.x
    did; version 3 samples from 1..S, as lbforaging 2.0.0 does, which is harder."""
    grid: bool = False
    """Observe layers of the cells around the agent instead of a list of foods and agents."""
    reward: Literal["common", "individual"] = "common"
    """With "common" every agent receives the sum of all agents' rewards."""
    penalty: float = 0.0
    """Penalty of each loader for a failed load."""
    mask: bool = False
    """Mask impossible actions, which would become NONE. The original masks nothing, so this is an
    easier problem; jumanji's version masks in this way."""
    action_names: ClassVar = "none", "north", "south", "west", "east", "load"
    """The name of each action."""
    limit: int = 50
    """Steps after which an episode is truncated."""

    def __post_init__(self) -> None:
        size, players, foods = self.size, self.players, self.foods
        inner = f"inner {size - 2}x{size - 2} cells"
        checks = (
            (size >= 5, f"a grid of size {size} is too small: foraging needs 5 or more"),
            (players >= 1, f"{players} players cannot forage: at least 1 is needed"),
            (players < size**2, f"{players} players do not fit a {size}x{size} grid with food"),
            (foods >= 1, f"{foods} foods leave nothing to forage: at least 1 is needed"),
            (foods <= (size - 2) ** 2, f"{foods} foods do not fit the {inner}"),
            (self.sight is None or self.sight >= 1, f"a sight of {self.sight} sees nothing"),
            (self.version in (2, 3), f"version v{self.version} is unknown: there are v2 and v3"),
            (self.limit >= 1, f"a limit of {self.limit} steps is too small: at least 1 is needed"),
        )
        for valid, message in checks:
            if not valid:
                raise UserError(f"{message}; for example {PAPER_MAPS[3]!r}")
        if self.reward not in ("common", "individual"):
            raise nearest(str(self.reward), ("common", "individual"), what="reward")
        number = isinstance(self.penalty, (int, float))
        if not (number and math.isfinite(self.penalty) and self.penalty >= 0):
            raise UserError(f"penalty {self.penalty!r} is not a finite number of 0 or more")
        if not isinstance(self.mask, bool):
            raise UserError(f"mask {self.mask!r} is neither true nor false")

    @property
    def window(self) -> int:
        """Number of cells seen in each direction: `sight`, or `size` if it is None."""
        return self.size if self.sight is None else self.sight

    @property
    def spec(self) -> Spec:
        """Sizes and rules of the environment."""
        obs = 3 * ((2 * self.window + 1) ** 2 if self.grid else self.foods + self.players)
        upper = "S-1, at least 1" if self.version == 2 else "S"
        sight = "" if self.window == self.size else f"-{self.window}s"
        return Spec(
            id=f"lbf:Foraging{'-grid' * self.grid}{sight}-{self.size}x{self.size}"
            f"-{self.players}p-{self.foods}f{'-coop' * self.coop}-v{self.version}",
            agents=self.players,
            obs=obs,
            state=obs * self.players,
            actions=(6,) * self.players,
            limit=self.limit,
            early_truncation=False,
            reward=self.reward,
            rules={
                "version": self.version,
                "size": self.size,
                "players": self.players,
                "foods": self.foods,
                "sight": self.window,
                "coop": self.coop,
                "agent_level": "uniform 1..2",
                "food_level": "S" if self.coop else f"uniform 1..{upper}",
                "S": "sum of the three lowest agent levels",
                "penalty": self.penalty,
                "mask": self.mask,
                "reward": self.reward,
                "limit": self.limit,
                "limit_is": "truncation",
                "observation": "grid" if self.grid else "vector",
                "state": "all observations, concatenated",
                "overlap": "as lbforaging: one may enter the cell of an agent "
                "whose own move failed",
            },
        )

    def reset(self, key: PRNGKeyArray) -> tuple[State, Observation]:
        """Begin an episode: place agents on any cells, then foods away from the border, from agents
        and from each other.

        The original samples by rejection: uniform cells until one is allowed, at most 1,000 times.
        Here every cell gets a random score, and each agent or food takes the allowed cell with the
        highest: the same distribution without the cap, which matters only if hardly any cell is
        allowed. If none is, both place fewer foods.
        """
        key_cell, key_agent, key_food = jax.random.split(key, 3)
        row, col = (jnp.asarray(axis.ravel()) for axis in np.indices((self.size, self.size)))
        score = jax.random.bits(key_cell, (self.size**2,)) | 1

        def place_agent(free, _):
            cell = jnp.argmax(score * free)
            return free & (jnp.arange(self.size**2) != cell), cell

        def place_food(allowed, _):
            cell = jnp.argmax(score * allowed)
            rows, cols = jnp.abs(row - row[cell]), jnp.abs(col - col[cell])
            block = jnp.maximum(rows, cols) <= 1
            cross = (jnp.minimum(rows, cols) == 0) & (rows + cols == 2)
            placed = allowed.any()
            return allowed & ~(block | cross), jnp.where(placed, cell, self.size**2)

        everywhere = jnp.ones(self.size**2, bool)
        free, agent_cell = jax.lax.scan(place_agent, everywhere, length=self.players)
        inner = (jnp.minimum(row, col) >= 1) & (jnp.maximum(row, col) <= self.size - 2)
        _, food_cell = jax.lax.scan(place_food, free & inner, length=self.foods)
        food_cell = jnp.sort(food_cell)
        agent_level = jax.random.randint(key_agent, (self.players,), 1, 3)
        # S, the sum of the three lowest levels (of all, if there are fewer agents).
        lowest_sum = jnp.sort(agent_level)[:3].sum()
        if self.coop:
            food_level = jnp.full(self.foods, lowest_sum)
        else:
            upper = lowest_sum if self.version == 3 else jnp.maximum(lowest_sum - 1, 1)
            food_level = jax.random.randint(key_food, (self.foods,), 1, upper + 1)
        food_level = jnp.where(food_cell < self.size**2, food_level, 0)
        state = State(
            agent_row=agent_cell // self.size,
            agent_col=agent_cell % self.size,
            agent_level=agent_level,
            food_row=food_cell // self.size,
            food_col=food_cell % self.size,
            food_level=food_level,
            total=food_level.sum(),
            time=jnp.zeros((), jnp.int32),
        )
        return state, self.observe(state)

    def place(
        self,
        players: ArrayLike,
        player_levels: ArrayLike,
        foods: ArrayLike,
        food_levels: ArrayLike,
    ) -> State:
        """The first state of an episode with these positions and levels.

        Positions are `(row, column)`: `players` is [agent, 2], `foods` [food, 2]. Foods may be in
        any order, and fewer than `self.foods`; level 0 means no food. They must be away from the
        border and from each other, as after `reset`: loading beside two foods is undefined. Raises
        `UserError` for a wrong number of agents or foods.
        """
        players, player_levels, foods, food_levels = (
            jnp.asarray(x, jnp.int32) for x in (players, player_levels, foods, food_levels)
        )
        if players.shape != (self.players, 2) or player_levels.shape != (self.players,):
            raise UserError(
                f"{self.players} agents need positions [{self.players}, 2] and as many levels, "
                f"not {list(players.shape)} and {list(player_levels.shape)}"
            )
        count = food_levels.shape[0] if food_levels.ndim == 1 else -1
        if foods.shape != (count, 2) or count > self.foods:
            raise UserError(
                f"at most {self.foods} foods need positions [foods, 2] and as many levels, "
                f"not {list(foods.shape)} and {list(food_levels.shape)}"
            )
        foods = jnp.pad(foods, ((0, self.foods - count), (0, 0)))
        food_levels = jnp.pad(food_levels, (0, self.foods - count))
        cell = foods[:, 0] * self.size + foods[:, 1]
        order = jnp.argsort(jnp.where(food_levels > 0, cell, self.size**2))
        return State(
            agent_row=players[:, 0],
            agent_col=players[:, 1],
            agent_level=player_levels,
            food_row=foods[order, 0],
            food_col=foods[order, 1],
            food_level=food_levels[order],
            total=food_levels.sum(),
            time=jnp.zeros((), jnp.int32),
        )

    def step(
        self, key: PRNGKeyArray, state: State, action: Int[Array, " agent"]
    ) -> tuple[State, TimeStep]:
        """Move the agents and load food. The step is deterministic: `key` is not used."""
        row, col = state.agent_row, state.agent_col
        food = state.food_level > 0
        beside = food[None, :] & (
            _distance(row, state.food_row) + _distance(col, state.food_col) == 1
        )
        loads = (action == LOAD)[:, None] & beside

        to_row = row + (action == SOUTH) - (action == NORTH)
        to_col = col + (action == EAST) - (action == WEST)
        off_grid = (jnp.minimum(to_row, to_col) < 0) | (jnp.maximum(to_row, to_col) >= self.size)
        onto_food = food[None, :] & _same(to_row, to_col, state.food_row, state.food_col)
        stays = off_grid | onto_food.any(1)
        to_row, to_col = jnp.where(stays, row, to_row), jnp.where(stays, col, to_col)
        contested = _same(to_row, to_col, to_row, to_col).sum(1) > 1

        # rᵢ = levelᵢ · level_food / (Σ_loaders level · F)
        force = (loads * state.agent_level[:, None]).sum(0)
        eaten = food & (force >= state.food_level)
        share = jnp.where(eaten, state.food_level, 0) / jnp.maximum(force * state.total, 1)
        gain = jnp.where(eaten[None, :], state.agent_level[:, None] * share[None, :], -self.penalty)
        reward = jnp.where(loads, gain, 0.0).sum(1)
        if self.reward == "common":
            reward = jnp.broadcast_to(reward.sum(), reward.shape)

        state = state._replace(
            agent_row=jnp.where(contested, row, to_row),
            agent_col=jnp.where(contested, col, to_col),
            food_level=jnp.where(eaten, 0, state.food_level),
            time=state.time + 1,
        )
        terminated = (state.food_level == 0).all()
        observation = self.observe(state)
        return state, TimeStep(
            observation=observation,
            reward=reward,
            terminated=terminated,
            truncated=~terminated & (state.time >= self.limit),
            final=observation,
        )

    def observe(self, state: State) -> Observation:
        """The observations of `state`; the global state is all observations, concatenated.

        Vector observations list `(row, column, level)` of the foods in sight in row-major order,
        of the agent itself, and of the other agents in sight by index. Absent entries are
        `(-1, -1, 0)` and come last in their list. Coordinates are relative to the corner of the
        agent's window, clipped to the grid. As in the original, an agent nearer than `sight` to the
        first row or column sees other agents, but not food, up to `2 * sight` from that border.

        Grid observations are three layers of the cells at most `sight` away, `[3, side, side]`
        flattened: levels of agents (the last agent's, if several overlap), levels of foods, and 1
        for empty cells of the grid.

        As in the original all actions are available, unless `mask` is set.
        """
        obs = self._grid_observations(state) if self.grid else self._vector_observations(state)
        return Observation(
            obs=obs,
            state=obs.reshape(-1),
            avail=self._action_mask(state) if self.mask else jnp.ones((self.players, 6), bool),
        )

    def _action_mask(self, state: State) -> Bool[Array, "agent action"]:
        """Possible actions: moves within the grid and not onto food, loading beside food."""
        food = (state.food_level > 0)[None, :]
        rows = state.agent_row[:, None] - state.food_row[None, :]
        cols = state.agent_col[:, None] - state.food_col[None, :]

        def move(down: int, right: int) -> Bool[Array, " agent"]:
            to_row, to_col = state.agent_row + down, state.agent_col + right
            inside = jnp.minimum(to_row, to_col) >= 0
            inside &= jnp.maximum(to_row, to_col) < self.size
            return inside & ~(food & (rows == -down) & (cols == -right)).any(1)

        moves = [move(-1, 0), move(1, 0), move(0, -1), move(0, 1)]
        beside = (food & (jnp.abs(rows) + jnp.abs(cols) == 1)).any(1)
        return jnp.stack([jnp.ones(self.players, bool), *moves, beside], axis=-1)

    def _vector_observations(self, state: State) -> Float[Array, "agent feature"]:
        n, sight = self.players, self.window
        row, col, level = state.agent_row, state.agent_col, state.agent_level
        top, left = row - jnp.minimum(row, sight), col - jnp.minimum(col, sight)

        food_row, food_col = state.food_row[None, :], state.food_col[None, :]
        seen = jnp.broadcast_to((state.food_level > 0)[None, :], (n, self.foods))
        if sight < self.size - 1:
            near = jnp.maximum(_distance(row, state.food_row), _distance(col, state.food_col))
            seen = seen & (near <= sight)
        foods = _pack(
            seen, food_row - top[:, None], food_col - left[:, None], state.food_level[None, :]
        )

        own = jnp.stack([row - top, col - left, level], -1)[:, None, :]
        # Slot k of the other agents holds agent k, or k + 1 from the observing agent's index on.
        before = jnp.asarray(np.arange(n)[:, None] > np.arange(n - 1)[None, :])
        other_row, other_col, other_level = (
            jnp.where(before, value[None, :-1], value[None, 1:]) for value in (row, col, level)
        )
        other_row, other_col = other_row - top[:, None], other_col - left[:, None]
        if sight < self.size - 1:
            low, high = jnp.minimum(other_row, other_col), jnp.maximum(other_row, other_col)
            others = _pack((low >= 0) & (high <= 2 * sight), other_row, other_col, other_level)
        else:
            others = jnp.stack([other_row, other_col, other_level], -1)
        items = jnp.concatenate([foods, own, others], axis=1)
        return items.reshape(n, -1).astype(jnp.float32)

    def _grid_observations(self, state: State) -> Float[Array, "agent feature"]:
        row, col = state.agent_row, state.agent_col
        reach = jnp.arange(-self.window, self.window + 1)
        rows, cols = row[:, None] + reach[None, :], col[:, None] + reach[None, :]

        def layer(item_row, item_col, value):
            at_row = (rows[:, :, None] == item_row[None, None, :]).astype(jnp.float32)
            at_col = (cols[:, :, None] == item_col[None, None, :]).astype(jnp.float32)
            return jnp.einsum("irk,ick,k->irc", at_row, at_col, value.astype(jnp.float32))

        later = np.triu(np.ones((self.players, self.players), bool), 1)
        hidden = (_same(row, col, row, col) & later).any(1)
        agents = layer(row, col, jnp.where(hidden, 0, state.agent_level))
        foods = layer(state.food_row, state.food_col, state.food_level)
        inside_rows = (rows >= 0) & (rows < self.size)
        inside_cols = (cols >= 0) & (cols < self.size)
        inside = inside_rows[:, :, None] & inside_cols[:, None, :]
        access = inside & (agents == 0) & (foods == 0)
        layers = [agents, foods, access.astype(jnp.float32)]
        return jnp.stack(layers, axis=1).reshape(self.players, -1)

    def scene(self, state: State) -> Grid:
        """The agents, and the foods that are left."""
        columns = [column.tolist() for column in jax.device_get(state)[:6]]
        agents, foods = (list(zip(*three, strict=True)) for three in (columns[:3], columns[3:]))
        return Grid(self.size, agents, [food for food in foods if food[2] > 0])

    def render(self, state: State) -> np.ndarray:
        """An image of `state`: uint8 `[height, width, 3]`, square, about 400 pixels wide."""
        return draw_grid(**self.scene(state)._asdict())


def _distance(one: Int[Array, " agent"], other: Int[Array, " item"]) -> Int[Array, "agent item"]:
    """Distances along one axis."""
    return jnp.abs(one[:, None] - other[None, :])


def _same(
    row: Int[Array, " agent"],
    col: Int[Array, " agent"],
    other_row: Int[Array, " item"],
    other_col: Int[Array, " item"],
) -> Bool[Array, "agent item"]:
    """True for pairs in the same cell."""
    return (row[:, None] == other_row[None, :]) & (col[:, None] == other_col[None, :])


def _pack(
    seen: Bool[Array, "agent item"],
    row: Int[Array, "agent item"],
    col: Int[Array, "agent item"],
    level: Int[Array, "#agent item"],
) -> Int[Array, "agent item 3"]:
    """`(row, column, level)` of the `seen` items, in order, then `(-1, -1, 0)` for the others."""
    items = seen.shape[1]
    earlier = np.tril(np.ones((items, items), bool), -1)
    slot = (seen[:, None, :] & earlier[None, :, :]).sum(-1)
    # here[agent, slot, item]
    here = seen[:, None, :] & (slot[:, None, :] == np.arange(items)[None, :, None])
    values = (
        (jnp.where(here, value[:, None, :] - empty, 0).sum(-1) + empty)
        for value, empty in ((row, -1), (col, -1), (level, 0))
    )
    return jnp.stack(list(values), axis=-1)


def make_env(
    name: str,
    /,
    *,
    reward: Literal["common", "individual"] = "common",
    penalty: float = 0.0,
    mask: bool = False,
    limit: int = 50,
    **unknown: Any,
) -> Foraging:
    """The environment of a name such as `Foraging-8x8-2p-2f-coop-v2`, whose grammar
    `perla.envs.foraging_ids.parse_name` has. Raises `UserError` for an unknown name or option."""
    if unknown:
        raise nearest(min(unknown), ("reward", "penalty", "mask", "limit"), what="foraging option")
    return Foraging(**parse_name(name), reward=reward, penalty=penalty, mask=mask, limit=limit)
