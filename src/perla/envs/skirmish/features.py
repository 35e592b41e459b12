"""Action masks, observations and states, as in SMAC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from perla.envs.battlefield import FIRST_TARGET, NOOP, NORTH, SIGHT, WEST
from perla.envs.skirmish.battle import NO_TARGET, Battle, Orders, State
from perla.types import Array, Bool, Float, Int

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
        patients = min(int(patients), battle.count(False))
        return FIRST_TARGET + max(battle.count(True), patients)

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of an observation, and of the state."""
        battle, options = self.battle, self.options
        agents, enemies = battle.count(False), battle.count(True)
        bits = battle.map.type_bits
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
        battle, extra = self.battle, self.actions - FIRST_TARGET
        agent, enemy = self._life(state, False) > 0, self._life(state, True) > 0
        targets = (self._distances(state, True) <= SHOOT_RANGE) & enemy[None]
        targets = _fill(targets, extra)
        heals = battle.of_slots(state, battle.heals[:, None], False)
        if battle.heals[battle.side(False)].any():
            patients = (self._distances(state, False) <= SHOOT_RANGE) & (agent & ~heals)[None]
            targets = jnp.where(heals[:, None], _fill(patients, extra), targets)
        first = [jnp.zeros_like(agent), jnp.ones_like(agent), *self._moves(state)]
        mask = jnp.concatenate([jnp.stack(first, 1), targets], 1)
        noop = (np.arange(self.actions) == NOOP)[None, :, None]
        return jnp.where(agent[:, None], mask, noop)

    def _life(self, state: State, enemies: bool) -> Float[Array, "slot copy"]:
        return self.battle.of_slots(state, state.hp, enemies)

    def _place(self, state: State, enemies: bool) -> tuple[Array, Array]:
        battle = self.battle
        return battle.of_slots(state, state.x, enemies), battle.of_slots(state, state.y, enemies)

    def _distances(self, state: State, enemies: bool) -> Float[Array, "agent slot copy"]:
        (x, y), (other_x, other_y) = self._place(state, False), self._place(state, enemies)
        dx, dy = other_x[None] - x[:, None], other_y[None] - y[:, None]
        return jnp.sqrt(dx * dx + dy * dy)

    def _moves(self, state: State) -> list[Bool[Array, "agent copy"]]:
        """Directions in which the cell half a move ahead is open."""
        terrain, (x, y) = self.battle.map.terrain, self._place(state, False)
        cells = jnp.asarray(terrain.ground.reshape(-1))
        ahead = self.options.move_amount / 2
        moves = []
        for dx, dy in _DIRECTIONS:
            # As in SMAC, coordinates are truncated towards zero.
            column = (x + dx * ahead).astype(jnp.int32)
            row = (y + dy * ahead).astype(jnp.int32)
            inside = (column >= 0) & (column < terrain.width) & (row >= 0) & (row < terrain.height)
            cell = jnp.clip(row * terrain.width + column, 0, cells.shape[0] - 1)
            moves.append(inside & cells[cell])
        return moves

    def orders(self, state: State, action: Int[Array, "agent copy"]) -> Orders:
        """The orders that the agents' actions are, of all units on their side."""
        battle, (x, y) = self.battle, self._place(state, False)
        heals = battle.of_slots(state, battle.heals[:, None], False)
        number = action - FIRST_TARGET + jnp.where(heals, 0, battle.count(False))
        attacks = action >= FIRST_TARGET
        if state.roster is not None:
            number = jnp.take_along_axis(
                state.roster, jnp.clip(number, 0, len(battle.starts) - 1), 0
            )
        steps = self.options.move_amount * np.array(_DIRECTIONS, np.float32)
        moves = (action >= NORTH) & (action <= WEST)
        step = jnp.clip(action - NORTH, 0, 3)
        agents = None if state.roster is None else state.roster[: battle.count(False)]

        def of_units(values: Array, otherwise: int | bool) -> Array:
            return battle.to_units(agents, values, otherwise)[battle.side(False)]

        return Orders(
            target=of_units(jnp.where(attacks, number, NO_TARGET), NO_TARGET),
            moves=of_units(moves, False) > 0,
            to_x=of_units(x + jnp.asarray(steps[:, 0])[step], 0),
            to_y=of_units(y + jnp.asarray(steps[:, 1])[step], 0),
        )

    # --- Observations ---------------------------------------------------------------------------

    def observe(
        self, state: State, mask: Bool[Array, "agent action copy"]
    ) -> Float[Array, "agent feature copy"]:
        """The observation of each agent: its moves, the enemies, the other agents, and itself."""
        battle, options = self.battle, self.options
        agents = battle.count(False)
        alive = (self._life(state, False) > 0)[:, None]
        attackable = mask[:, FIRST_TARGET : FIRST_TARGET + battle.count(True)]
        seen_enemies = self._seen(state, True, attackable)
        seen_allies = self._seen(state, False, None)
        if options.obs_last_action:
            actions = self._last_actions(state)[None]
            visible = seen_allies[:, :, :1]
            seen_allies = jnp.concatenate([seen_allies, jnp.where(visible > 0, actions, 0)], 2)
        # Slot k of the other agents holds agent k, or k + 1 from the observing agent's on.
        numbers = np.arange(agents)
        before = (numbers[:, None] > numbers[None, :-1])[:, :, None, None]
        seen_allies = jnp.where(before, seen_allies[:, :-1], seen_allies[:, 1:])
        own = self._body(state, False, health=options.obs_own_health or options.obs_all_health)
        blocks = [mask[:, NORTH : WEST + 1].astype(jnp.float32), seen_enemies, seen_allies, own]
        flat = [block.reshape(agents, -1, block.shape[-1]) for block in blocks]
        obs = jnp.where(alive, jnp.concatenate(flat, 1), 0)
        if options.obs_timestep_number:  # As in SMAC, the dead see it too.
            share = state.time / battle.map.limit
            share = jnp.broadcast_to(share[None, None], (agents, 1, *share.shape))
            obs = jnp.concatenate([obs, share], 1)
        return obs

    def _seen(
        self, state: State, enemies: bool, attackable: Bool[Array, "agent slot copy"] | None
    ) -> Float[Array, "agent slot feature copy"]:
        """Features of the living units of one side in sight of each agent, 0 for others."""
        (x, y), (other_x, other_y) = self._place(state, False), self._place(state, enemies)
        dx, dy = other_x[None] - x[:, None], other_y[None] - y[:, None]
        distance = jnp.sqrt(dx * dx + dy * dy)
        seen = (distance < SIGHT) & (self._life(state, enemies) > 0)[None]
        first = jnp.ones_like(dx) if attackable is None else attackable.astype(jnp.float32)
        body = self._body(state, enemies, health=self.options.obs_all_health)
        place = jnp.stack([first, distance / SIGHT, dx / SIGHT, dy / SIGHT], 2)
        body = jnp.broadcast_to(body[None], (len(x), *body.shape))
        return jnp.where(seen[:, :, None], jnp.concatenate([place, body], 2), 0)

    def _body(
        self, state: State, enemies: bool, *, health: bool
    ) -> Float[Array, "slot feature copy"]:
        """Life, shield and type of the units of one side."""
        battle, copies = self.battle, state.x.shape[-1]
        army = battle.map.enemies if enemies else battle.map.allies
        blocks = []
        if health:
            blocks.append(self._life(state, enemies) / self._table(state, "hp", enemies))
            if battle.table("shield")[battle.side(enemies)].any():
                most = np.maximum(battle.table("shield"), 1e-9)
                most = battle.of_slots(state, most, enemies)
                blocks.append(battle.of_slots(state, state.shield, enemies) / most)
        count = battle.count(enemies)
        body = jnp.stack(blocks, 1) if blocks else jnp.zeros((count, 0, copies))
        kind = np.zeros((len(battle.units), 1), int)
        kind[battle.side(enemies), 0] = [army.types.index(name) for name in army.names]
        kinds = battle.of_slots(state, kind, enemies)[:, None]
        kinds = (kinds == np.arange(battle.map.type_bits)[None, :, None]).astype(jnp.float32)
        kinds = jnp.broadcast_to(kinds, (count, battle.map.type_bits, copies))
        return jnp.concatenate([body, kinds], 1)

    def _table(self, state: State, field: str, enemies: bool) -> Any:
        return self.battle.of_slots(state, self.battle.table(field), enemies)

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
        blocks = [self._rows(state, False), self._rows(state, True)]
        if options.state_last_action:
            blocks.append(self._last_actions(state))
        flat = [block.reshape(-1, copies) for block in blocks]
        if options.state_timestep_number:
            flat.append((state.time / battle.map.limit)[None])
        return jnp.concatenate(flat)

    def _rows(self, state: State, enemies: bool) -> Float[Array, "slot feature copy"]:
        """Rows of the state for the units of one side; those of the dead are 0."""
        battle, terrain = self.battle, self.battle.map.terrain
        body = self._body(state, enemies, health=True)
        x, y = self._place(state, enemies)
        x = (x - terrain.width / 2) / terrain.width
        y = (y - terrain.height / 2) / terrain.height
        blocks = [body[:, :1], jnp.stack([x, y], 1), body[:, 1:]]
        if not enemies:
            energy = np.array([u.heal.energy_max if u.heal else 1.0 for u in battle.units])[:, None]
            wait = jnp.where(
                battle.heals[:, None],
                state.energy / energy,
                state.cooldown / battle.table("cooldown_scale"),
            )
            blocks.insert(1, battle.of_slots(state, wait, enemies)[:, None])
        rows = jnp.concatenate(blocks, 1)
        return jnp.where((self._life(state, enemies) > 0)[:, None], rows, 0)


def _fill(targets: Bool[Array, "agent slot copy"], count: int) -> Bool[Array, "agent count copy"]:
    """`targets` cut or padded to `count` slots."""
    targets = targets[:, :count]
    return jnp.pad(targets, ((0, 0), (0, count - targets.shape[1]), (0, 0)))
