"""Action masks, observations and states, as in SMAC."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from perla.envs.skirmish.battle import NO_TARGET, Battle, Orders, State
from perla.types import Array, Bool, Float, Int

NOOP, STOP, NORTH, SOUTH, EAST, WEST, FIRST_TARGET = range(7)
"""The actions of every agent; action `FIRST_TARGET + k` attacks enemy k, or for healers heals
agent k."""

SIGHT = 9.0
"""Distance between centres below which an agent sees another unit."""
SHOOT_RANGE = 6.0
"""Distance between centres up to which an agent may attack or heal another unit."""

_DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0))
"""(x, y) of north, south, east and west."""


@dataclass(frozen=True)
class FeatureOptions:
    """The contents of observations and states, by SMAC's names and with its defaults."""

    obs_all_health: bool = True
    """Observe the life of units in sight, and the agent's own."""
    obs_own_health: bool = True
    """Observe the agent's own life, even without `obs_all_health`."""
    obs_last_action: bool = False
    """Observe the last actions of agents in sight."""
    obs_timestep_number: bool = False
    """Observe the share of the episode's steps that are over."""
    obs_instead_of_state: bool = False
    """The state is all observations, concatenated."""
    state_last_action: bool = True
    """The state contains the agents' last actions."""
    state_timestep_number: bool = False
    """The state contains the share of the episode's steps that are over."""
    move_amount: float = 2.0
    """Distance that a move orders."""


@dataclass(frozen=True, eq=False)
class Features:
    """Masks, observations and states of a battle; arrays have a last axis of copies."""

    battle: Battle
    options: FeatureOptions

    @property
    def actions(self) -> int:
        """Number of actions of an agent."""
        battle = self.battle
        heals = battle.heals[battle.side(False)]
        patients = np.flatnonzero(~heals).max(initial=-1) + 1 if heals.any() else 0
        return FIRST_TARGET + max(battle.enemies, int(patients))

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of an observation, and of the state."""
        battle, options = self.battle, self.options
        agents, enemies, bits = battle.agents, battle.enemies, battle.map.type_bits
        shield = battle.table("shield")[:, 0] > 0
        bars = [1 + bool(shield[battle.side(side)].any()) for side in (False, True)]
        seen = [4 + bits + options.obs_all_health * each for each in bars]
        seen[0] += options.obs_last_action * self.actions
        own = bits + (options.obs_all_health or options.obs_own_health) * bars[0]
        obs = 4 + enemies * seen[1] + (agents - 1) * seen[0] + own + options.obs_timestep_number
        if options.obs_instead_of_state:
            return obs, agents * obs
        state = agents * (3 + bars[0] + bits) + enemies * (2 + bars[1] + bits)
        state += options.state_last_action * agents * self.actions
        return obs, state + options.state_timestep_number

    def mask(self, state: State) -> Bool[Array, "agent action copy"]:
        """Available actions. The dead have the no-op alone."""
        battle = self.battle
        side, foes = battle.side(False), battle.side(True)
        alive = state.hp > 0
        distance = _distances(state, side, slice(None))
        near = (distance <= SHOOT_RANGE) & alive[None]
        targets = near[:, foes]
        extra = self.actions - FIRST_TARGET - battle.enemies
        targets = jnp.pad(targets, ((0, 0), (0, extra), (0, 0)))
        heals = battle.heals[side]
        if heals.any():
            patients = near[:, side] & ~heals[None, :, None]
            patients = patients[:, : self.actions - FIRST_TARGET]
            missing = self.actions - FIRST_TARGET - patients.shape[1]
            patients = jnp.pad(patients, ((0, 0), (0, missing), (0, 0)))
            targets = jnp.where(heals[:, None, None], patients, targets)
        first = [jnp.zeros_like(alive[side]), jnp.ones_like(alive[side]), *self._moves(state)]
        mask = jnp.concatenate([jnp.stack(first, 1), targets], 1)
        noop = (np.arange(self.actions) == NOOP)[None, :, None]
        return jnp.where(alive[side][:, None], mask, noop)

    def _moves(self, state: State) -> list[Bool[Array, "agent copy"]]:
        """Directions in which the cell half a move ahead is open."""
        terrain, side = self.battle.map.terrain, self.battle.side(False)
        cells = jnp.asarray(terrain.ground.reshape(-1))
        ahead = self.options.move_amount / 2
        moves = []
        for dx, dy in _DIRECTIONS:
            # As in SMAC, coordinates are truncated towards zero.
            column = (state.x[side] + dx * ahead).astype(jnp.int32)
            row = (state.y[side] + dy * ahead).astype(jnp.int32)
            inside = (column >= 0) & (column < terrain.width) & (row >= 0) & (row < terrain.height)
            cell = jnp.clip(row * terrain.width + column, 0, cells.shape[0] - 1)
            moves.append(inside & cells[cell])
        return moves

    def orders(self, state: State, action: Int[Array, "agent copy"]) -> Orders:
        """The orders that the agents' actions are."""
        side = self.battle.side(False)
        heals = self.battle.heals[side][:, None]
        number = action - FIRST_TARGET + jnp.where(heals, 0, self.battle.agents)
        steps = self.options.move_amount * np.array(_DIRECTIONS, np.float32)
        moves = (action >= NORTH) & (action <= WEST)
        step = jnp.clip(action - NORTH, 0, 3)
        return Orders(
            target=jnp.where(action >= FIRST_TARGET, number, NO_TARGET),
            moves=moves,
            to_x=state.x[side] + jnp.asarray(steps[:, 0])[step],
            to_y=state.y[side] + jnp.asarray(steps[:, 1])[step],
        )

    # --- Observations ---------------------------------------------------------------------------

    def observe(
        self, state: State, mask: Bool[Array, "agent action copy"]
    ) -> Float[Array, "agent feature copy"]:
        """The observation of each agent: its moves, the enemies, the other agents, and itself."""
        battle, options = self.battle, self.options
        allies, enemies = battle.side(False), battle.side(True)
        alive = (state.hp > 0)[allies][:, None]
        attackable = mask[:, FIRST_TARGET : FIRST_TARGET + battle.enemies]
        seen_enemies = self._seen(state, enemies, attackable)
        seen_allies = self._seen(state, allies, None)
        if options.obs_last_action:
            actions = self._last_actions(state)[None]
            visible = seen_allies[:, :, :1]
            seen_allies = jnp.concatenate([seen_allies, jnp.where(visible > 0, actions, 0)], 2)
        # Slot k of the other agents holds agent k, or k + 1 from the observing agent's on.
        numbers = np.arange(battle.agents)
        before = (numbers[:, None] > numbers[None, :-1])[:, :, None, None]
        seen_allies = jnp.where(before, seen_allies[:, :-1], seen_allies[:, 1:])
        own = self._body(state, allies, health=options.obs_own_health or options.obs_all_health)
        blocks = [mask[:, NORTH : WEST + 1].astype(jnp.float32), seen_enemies, seen_allies, own]
        flat = [block.reshape(battle.agents, -1, block.shape[-1]) for block in blocks]
        obs = jnp.where(alive, jnp.concatenate(flat, 1), 0)
        if options.obs_timestep_number:  # As in SMAC, the dead see it too.
            share = state.time / battle.map.limit
            share = jnp.broadcast_to(share[None, None], (battle.agents, 1, *share.shape))
            obs = jnp.concatenate([obs, share], 1)
        return obs

    def _seen(
        self, state: State, units: slice, attackable: Bool[Array, "agent unit copy"] | None
    ) -> Float[Array, "agent unit feature copy"]:
        """Features of the living `units` in sight of each agent, 0 for others."""
        side = self.battle.side(False)
        dx = state.x[None, units] - state.x[side][:, None]
        dy = state.y[None, units] - state.y[side][:, None]
        distance = jnp.sqrt(dx * dx + dy * dy)
        seen = (distance < SIGHT) & (state.hp > 0)[None, units]
        first = jnp.ones_like(dx) if attackable is None else attackable.astype(jnp.float32)
        body = self._body(state, units, health=self.options.obs_all_health)
        place = jnp.stack([first, distance / SIGHT, dx / SIGHT, dy / SIGHT], 2)
        body = jnp.broadcast_to(body[None], (self.battle.agents, *body.shape))
        return jnp.where(seen[:, :, None], jnp.concatenate([place, body], 2), 0)

    def _body(
        self, state: State, units: slice, *, health: bool
    ) -> Float[Array, "unit feature copy"]:
        """Life, shield and type of `units`."""
        battle = self.battle
        army = battle.map.allies if units.stop else battle.map.enemies
        blocks = []
        if health:
            blocks.append((state.hp / battle.table("hp"))[units])
            shield = battle.table("shield")
            if shield[units].any():
                blocks.append((state.shield / np.maximum(shield, 1e-9))[units])
        body = jnp.stack(blocks, 1) if blocks else jnp.zeros((len(army), 0, state.x.shape[-1]))
        types = np.zeros((len(army), battle.map.type_bits, 1), np.float32)
        for row, name in enumerate(army.names):
            if battle.map.type_bits:
                types[row, army.types.index(name)] = 1
        kinds = jnp.broadcast_to(jnp.asarray(types), (*types.shape[:2], state.x.shape[-1]))
        return jnp.concatenate([body, kinds], 1)

    def _last_actions(self, state: State) -> Float[Array, "agent action copy"]:
        """Indicators of the agents' last actions; all 0 before the first."""
        numbers = np.arange(self.actions)[None, :, None]
        return (state.last_action[:, None] == numbers).astype(jnp.float32)

    # --- States ---------------------------------------------------------------------------------

    def global_state(
        self, state: State, obs: Float[Array, "agent feature copy"]
    ) -> Float[Array, "state copy"]:
        """The state of the battle, for centralised critics."""
        battle, options = self.battle, self.options
        copies = state.x.shape[-1]
        if options.obs_instead_of_state:
            return obs.reshape(-1, copies)
        allies, enemies = battle.side(False), battle.side(True)
        blocks = [self._rows(state, allies), self._rows(state, enemies)]
        if options.state_last_action:
            blocks.append(self._last_actions(state))
        flat = [block.reshape(-1, copies) for block in blocks]
        if options.state_timestep_number:
            flat.append((state.time / battle.map.limit)[None])
        return jnp.concatenate(flat)

    def _rows(self, state: State, units: slice) -> Float[Array, "unit feature copy"]:
        """Rows of the state for the units of one side; those of the dead are 0."""
        battle = self.battle
        terrain = battle.map.terrain
        body = self._body(state, units, health=True)
        x = (state.x[units] - terrain.width / 2) / terrain.width
        y = (state.y[units] - terrain.height / 2) / terrain.height
        blocks = [body[:, :1], jnp.stack([x, y], 1), body[:, 1:]]
        if units.stop:
            heals = battle.heals[:, None]
            energy = np.array([u.heal.energy_max if u.heal else 1.0 for u in battle.units])[:, None]
            wait = jnp.where(
                heals, state.energy / energy, state.cooldown / battle.table("cooldown_scale")
            )
            blocks.insert(1, wait[units][:, None])
        rows = jnp.concatenate(blocks, 1)
        return jnp.where((state.hp > 0)[units][:, None], rows, 0)


def _distances(state: State, one: slice, other: slice) -> Float[Array, "one other copy"]:
    dx = state.x[None, other] - state.x[one][:, None]
    dy = state.y[None, other] - state.y[one][:, None]
    return jnp.sqrt(dx * dx + dy * dy)
