"""`skirmish:MAP`: SMAC's maps as an environment in JAX."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, fields
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.battlefield import FIRST_TARGET, Battlefield
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.envs.render import Field
from perla.envs.skirmish.battle import (
    SEES_ALL,
    USUAL_DIFFICULTY,
    Battle,
    EnemyScript,
    State,
)
from perla.envs.skirmish.copies import over_copies
from perla.envs.skirmish.draw import battle_scene, draw_battle
from perla.envs.skirmish.features import FeatureOptions, Features
from perla.envs.skirmish.maps import Map, load_map
from perla.envs.skirmish.simulate import rests, simulate
from perla.envs.skirmish.start import Start, start_battle
from perla.envs.skirmish.teams import MAP_TEAM, Team, mix, parse_team
from perla.envs.skirmish.units import RULES, RuleSet
from perla.errors import UserError, nearest
from perla.types import Array, Float, Int, PRNGKeyArray, UInt

EXAMPLES = {
    "3m": "3 marines against as many",
    "8m": "8 marines against as many",
    "25m": "25 marines against as many",
    "2s3z": "2 stalkers and 3 zealots against as many",
    "3s5z": "3 stalkers and 5 zealots against as many",
    "1c3s5z": "1 colossus, 3 stalkers and 5 zealots against as many",
    "MMM": "1 medivac, 2 marauders and 7 marines against as many",
    "2m_vs_1z": "2 marines against 1 zealot",
    "2s_vs_1sc": "2 stalkers against 1 spine crawler",
    "so_many_baneling": "7 zealots against 32 banelings",
    "bane_vs_bane": "20 zerglings and 4 banelings against as many",
    "2c_vs_64zg": "2 colossi against 64 zerglings",
    "3s5z_vs_3s6z": "3 stalkers and 5 zealots against 1 zealot more",
    "MMM2": "1 medivac, 2 marauders and 7 marines against 1 marauder and 1 marine more",
    "corridor": "6 zealots against 24 zerglings",
    "5m_vs_6m": "5 marines against 6",
    "10m_vs_11m": "10 marines against 11",
    "27m_vs_30m": "27 marines against 30",
    "6h_vs_8z": "6 hydralisks against 8 zealots",
    "3s_vs_5z": "3 stalkers against 5 zealots",
    "path/to/map.toml": "your own map",
}
"""Names of maps, with the units of both sides: SMAC's fifteen of the paper, and five more."""


_CHOICES = {
    "rules": get_args(RuleSet),
    "start": get_args(Start),
    "enemy_script": get_args(EnemyScript),
}
"""Options that are one of a few words."""


@dataclass(frozen=True, eq=False)
class Skirmish:
    """A battle of agents against scripted enemies, an [`Env`][perla.envs.protocol.Env].

    Each step is eight ticks of a simulation. Actions, masks, observations, states, rewards and ends
    are SMAC's (Samvelyan et al., 2019), and options have its names. Episodes are truncated at the
    limit, where SMAC terminates them.

    Raises `UserError` for an impossible option.
    """

    map: Map
    rules: RuleSet = "smac"
    """The numbers of units and the rules: those of StarCraft II, or SMAClite's."""
    start: Start = "map"
    """Start of the units: at the map's places with full life; jittered by up to 0.75 cells and
    with 0.6 to 1 of their life; or SMACv2's random places."""
    team: str = MAP_TEAM
    """The units of both sides: the map's, or in each episode as many random ones: `terran`,
    `protoss` or `zerg`, SMACv2's teams, or types with their weights, `marine:2,marauder:1`."""
    enemy_script: EnemyScript = "nearest"
    """Script of the enemies: SMAC's `nearest`, `focus-fire`, `kite`, or in each episode one of
    these, `mixed`."""
    difficulty: int = USUAL_DIFFICULTY
    """Level of the enemies: below 7 each rests in a tenth of the steps for every level that is
    missing; at 8 they see everything."""
    step_mul: int = 8
    """Ticks of a step."""
    reward_sparse: bool = False
    """The reward is 1 for a win, −1 for a defeat, else 0; the other reward options are ignored."""
    reward_only_positive: bool = True
    """Do not subtract the agents' losses."""
    reward_death_value: float = 10.0
    """Reward for each enemy killed."""
    reward_win: float = 200.0
    """Reward for a win."""
    reward_defeat: float = 0.0
    """Reward for a defeat."""
    reward_negative_scale: float = 0.5
    """Factor of the agents' losses without `reward_only_positive`."""
    reward_scale: bool = True
    """Divide rewards such that a flawless episode's sum is `reward_scale_rate`."""
    reward_scale_rate: float = 20.0
    """The largest return, if no shield or life regenerates."""
    features: FeatureOptions = field(default_factory=FeatureOptions)
    """The contents of observations and states."""

    def __post_init__(self) -> None:
        if self.step_mul < 1:
            raise UserError(f"step_mul {self.step_mul}: a step needs at least 1 tick")
        if not 1 <= self.difficulty <= SEES_ALL:
            raise UserError(f"difficulty {self.difficulty}: expected 1 to {SEES_ALL}")
        if self.features.move_amount <= 0:
            raise UserError(f"move_amount {self.features.move_amount}: a move needs more than 0")
        if self.team != MAP_TEAM:
            parse_team(self.team, self.rules)
        if self.reward_scale_rate <= 0:
            raise UserError(f"reward_scale_rate {self.reward_scale_rate}: expected more than 0")

    @functools.cached_property
    def battle(self) -> Battle:
        """The units as tables, and the rules."""
        more = RULES[self.rules], self.enemy_script, self.difficulty
        if self._team is None:
            return Battle(self.map, *more)
        return Battle(mix(self.map, self._team), *more, slots=self.map)

    @functools.cached_property
    def _team(self) -> Team | None:
        return None if self.team == MAP_TEAM else parse_team(self.team, self.rules)

    @functools.cached_property
    def _features(self) -> Features:
        return Features(self.battle, self.features)

    @functools.cached_property
    def spec(self) -> Spec:
        """Sizes and rules of the environment."""
        agents = self.battle.count(False)
        obs, state = self._features.sizes
        options = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.name not in ("map", "features")
        }
        return Spec(
            id=f"skirmish:{self.map.name}",
            agents=agents,
            obs=obs,
            state=state,
            actions=(self._features.actions,) * agents,
            limit=self.map.limit,
            reward="common",
            rules={
                "map": self.map.name,
                **options,
                **{f.name: getattr(self.features, f.name) for f in fields(self.features)},
                "limit": self.map.limit,
                "limit_is": "truncation",
            },
            mortal=True,
        )

    def reset(self, key: PRNGKeyArray) -> tuple[State, Observation]:
        """Begin an episode. By default only the enemies' goal on some maps is random."""
        return self._reset(jax.random.bits(key, (), jnp.uint32))

    def step(
        self, key: PRNGKeyArray, state: State, action: Int[Array, " agent"]
    ) -> tuple[State, TimeStep]:
        """Make one transition. The action of a dead agent, and any unavailable one, does nothing
        or what is possible of it: only distances up to 6 can be attacked at the start of a step."""
        return self._step(jax.random.bits(key, (), jnp.uint32), state, action)

    @functools.cached_property
    def _reset(self) -> Any:
        def reset(seed: UInt[Array, " copy"]) -> tuple[State, Observation]:
            state = start_battle(self.battle, self.start, seed, self._team)
            return state, self._observe(state)

        return over_copies(reset)

    @functools.cached_property
    def _step(self) -> Any:
        features = self._features

        def step(
            seed: UInt[Array, " copy"], state: State, action: Int[Array, "agent copy"]
        ) -> tuple[State, TimeStep]:
            orders = features.orders(state, action)
            orders = orders._replace(rests=rests(self.battle, seed))
            after = simulate(self.battle, seed, state, orders, self.step_mul)
            after = after._replace(last_action=action, time=state.time + 1)
            won, lost, over = self._ends(after)
            observation = self._observe(after)
            reward = self._reward(state, after, won, lost)
            truncated = ~over & (after.time >= self.map.limit)
            return after, TimeStep(
                observation=observation,
                reward=jnp.broadcast_to(reward[None], action.shape),
                terminated=over,
                truncated=truncated,
                final=observation,
                won=won.astype(jnp.float32),
            )

        return over_copies(step)

    def _observe(self, state: State) -> Observation:
        mask = self._features.mask(state)
        obs = self._features.observe(state, mask)
        return Observation(
            obs=obs,
            state=self._features.global_state(state, obs),
            avail=mask,
            alive=self.battle.of_slots(state, state.hp, False) > 0,
        )

    def _ends(self, state: State) -> tuple[Array, Array, Array]:
        """Battles that are won, lost, and over. A side of which only healers are left has lost."""
        battle = self.battle
        fights = (state.hp > 0) & (battle.rules.healers_fight | ~battle.heals[:, None])
        allies, enemies = fights[battle.side(False)].any(0), fights[battle.side(True)].any(0)
        won = ~enemies & (allies | battle.rules.healers_fight)
        # As in SMAC, a mutual kill is a draw, but where agents heal a defeat.
        foes = (state.hp > 0)[battle.side(True)].any(0) | battle.heals[battle.side(False)].any()
        return won, ~allies & ~won & foes, ~allies | ~enemies

    def _reward(
        self, before: State, after: State, won: Array, lost: Array
    ) -> Float[Array, " copy"]:
        """Life and shield that the enemies lost, and a bonus for each that died, and for a win."""
        if self.reward_sparse:
            return won.astype(jnp.float32) - lost.astype(jnp.float32)
        ally, enemy = self.battle.side(False), self.battle.side(True)
        died = (before.hp > 0) & (after.hp <= 0)
        left = jnp.where(after.hp > 0, after.hp + after.shield, 0)
        loss = jnp.where(before.hp > 0, before.hp + before.shield - left, 0)
        reward = loss[enemy].sum(0) + self.reward_death_value * died[enemy].sum(0)
        if self.reward_only_positive:
            # As in SMAC: a step in which shields regenerate more than is hit counts, too.
            reward = jnp.abs(reward)
        else:
            deaths = self.reward_death_value * died[ally].sum(0)
            reward -= self.reward_negative_scale * (loss[ally].sum(0) + deaths)
        reward += self.reward_win * won + self.reward_defeat * lost
        if self.reward_scale:
            reward /= self._max_reward(after) / self.reward_scale_rate
        return reward

    @property
    def max_reward(self) -> float:
        """The unscaled return of an episode in which all enemies of the map die and nothing
        regenerates."""
        units = self.map.enemies.units
        return self._bonuses + sum(unit.hp + unit.shield for unit in units)

    @property
    def _bonuses(self) -> float:
        return self.reward_death_value * len(self.map.enemies) + self.reward_win

    def _max_reward(self, state: State) -> float | Float[Array, " copy"]:
        if state.roster is None:
            return self.max_reward
        health = self.battle.table("hp") + self.battle.table("shield")
        return self._bonuses + self.battle.of_slots(state, health, True).sum(0)

    def battlefield(self, state: State) -> Battlefield:
        """Both sides of the battle, for [scripted agents][perla.envs.scripts]."""
        state = jax.tree.map(lambda leaf: leaf[..., None], state)
        battle = self.battle

        def of(values: Any, enemies: bool) -> Array:
            return jnp.asarray(battle.of_slots(state, values, enemies))[:, 0]

        life = jnp.where(state.hp > 0, state.hp + state.shield, 0)
        camp = self.map.enemies.start.mean(0).astype(np.float32)
        if self.start == "random":  # The map's place is not theirs.
            there = (state.hp > 0)[battle.side(True)]
            where = jnp.stack([state.x, state.y])[:, battle.side(True)]
            total = jnp.where(there[None], where, 0).sum(1)
            camp = (total / jnp.maximum(there.sum(0), 1)[None])[:, 0]
        numbers = np.arange(len(battle.units))[:, None]
        mine, theirs = of(numbers, False), of(numbers, True)
        return Battlefield(
            x=of(state.x, False),
            y=of(state.y, False),
            life=of(state.hp, False),
            hurt=of(state.hp < battle.table("hp"), False),
            ready=of(state.cooldown, False) <= 0,
            heals=of(battle.heals[:, None], False),
            enemy_x=of(state.x, True),
            enemy_y=of(state.y, True),
            enemy_life=of(life, True),
            hittable=jnp.asarray(battle.may_target)[mine[:, None], theirs[None]],
            camp=jnp.asarray(camp),
        )

    @property
    def action_names(self) -> tuple[str, ...]:
        """The name of each action. Targets are enemies; those of healers are agents."""
        targets = range(1, self._features.actions - FIRST_TARGET + 1)
        moves = "no-op", "stop", "north", "south", "east", "west"
        return *moves, *(f"target {number}" for number in targets)

    def scene(self, state: State) -> Field:
        """The terrain, and the living units with their shots."""
        return battle_scene(self.battle, jax.device_get(state))

    def render(self, state: State) -> np.ndarray:
        """An image of `state`: uint8 `[height, width, 3]`."""
        return draw_battle(self.battle, jax.device_get(state))


def make_env(name: str, /, **options: Any) -> Skirmish:
    """The environment of a map's name, such as `3m`, or of a file, `path/to/map.toml`.

    Options are the fields of `Skirmish` and `FeatureOptions`. Raises `UserError` for an unknown
    name or option, or a value of the wrong type.
    """
    of_env = {each.name: each for each in fields(Skirmish)[1:-1]}
    of_features = {each.name: each for each in fields(FeatureOptions)}
    known = of_env | of_features
    for option, value in tuple(options.items()):
        if option not in known:
            raise nearest(option, known, what="skirmish option")
        options[option] = _check(option, value, known[option].default)
    for option, choices in _CHOICES.items():
        if options.get(option, choices[0]) not in choices:
            raise nearest(options[option], choices, what=option)
    rules = options.get("rules", "smac")
    features = {name: value for name, value in options.items() if name in of_features}
    others = {name: value for name, value in options.items() if name in of_env}
    return Skirmish(load_map(name, rules), **others, features=FeatureOptions(**features))


def _check(option: str, value: Any, default: Any) -> Any:
    """`value` as the type of the option's `default`. Raises `UserError` if it is of another."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, bool):
        valid, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        valid, expected = isinstance(value, int) and number, "a whole number"
    elif isinstance(default, float):
        valid, expected = number and math.isfinite(value), "a finite number"
    else:
        valid, expected = isinstance(value, str), "a text"
    if not valid:
        raise UserError(f"skirmish: {option} {value!r}: expected {expected}")
    return float(value) if isinstance(default, float) else value
