"""Probe worlds: so small that every value and every best action is known.

One class, of which each world is a row: what is seen, what is earned, how an episode ends. `signs`
are drawn afresh for every episode, one for each agent; an action says −1 (the first) or +1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from perla.envs.protocol import Observation, Spec, TimeStep
from perla.types import Actions, Array, Float, Int, PRNGKeyArray

GAMMA = 0.5
"""The discount at which the known values below are worth what they say."""


PLAIN = {
    "actor_network": "mlp",
    "num_layers": 2,
    "normalize_advantages": True,
    "normalize_rewards": False,
    "ent_coef_final": None,
}
"""Settings under which known answers are known: no memory, rewards as they come."""


class Moment(NamedTuple):
    """The whole state of a probe world."""

    time: Int[Array, ""]
    signs: Float[Array, " agent"]
    """−1 or +1."""


Known = dict[tuple[int, tuple[int, ...]], float]
"""(time, signs) → the value of that moment under the best policy."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A common-reward world of at most `length` steps."""

    name: str
    reward: Callable[[Moment, Actions], Float[Array, ""]]
    known: Known
    agents: int = 1
    actions: int = 1
    length: int = 1
    end: Literal["terminated", "truncated"] = "terminated"
    signs: Literal["hidden", "one", "each", "each, at first"] = "hidden"
    """Whether agents see no sign, the same sign, or each its own, always or at the first step."""
    clock: bool = False
    """Whether agents see the time."""
    continuous: bool = False
    """Whether an action is a vector of `actions` dimensions and not one of so many."""
    mortal: bool = False
    """Whether agents whose sign is −1 take no part after the first step."""
    forbidden: tuple[int, ...] = ()
    """Actions that may not be chosen, or dimensions that there are not."""
    best: Callable[[tuple[int, ...]], list] | None = field(default=None)
    """signs → the best joint action, if there is a choice."""

    @property
    def spec(self) -> Spec:
        n = self.agents
        return Spec(
            f"probe:{self.name}", n, 2, n + 1, (self.actions,) * n, self.length, "common",
            continuous=self.continuous, mortal=self.mortal,
        )  # fmt: skip

    def reset(self, key: PRNGKeyArray) -> tuple[Moment, Observation]:
        signs = jax.random.rademacher(key, (self.agents,), float)
        signs = jnp.broadcast_to(signs[:1], signs.shape) if self.signs == "one" else signs
        moment = Moment(jnp.int32(0), signs)
        return moment, self.see(moment)

    def step(self, key: PRNGKeyArray, moment: Moment, action: Actions) -> tuple[Moment, TimeStep]:
        reward = jnp.full(self.agents, self.reward(moment, action), float)
        moment = moment._replace(time=moment.time + 1)
        seen, over = self.see(moment), moment.time == self.length
        terminates = self.end == "terminated"
        return moment, TimeStep(seen, reward, over & terminates, over & (not terminates), seen)

    def render(self, moment: Moment):
        raise AssertionError("nothing draws this world")

    def see(self, moment: Moment) -> Observation:
        signs = moment.signs * (self.signs != "hidden")
        if self.signs == "each, at first":
            signs = signs * (moment.time == 0)
        time = moment.time.astype(float) * self.clock
        own = jnp.stack([signs, jnp.broadcast_to(time, signs.shape)], -1)
        avail = ~jnp.isin(jnp.arange(self.actions), jnp.array(self.forbidden, int))
        return Observation(
            own,
            jnp.append(signs, time),
            jnp.broadcast_to(avail, (self.agents, self.actions)),
            (moment.signs > 0) | (moment.time == 0) if self.mortal else None,
        )

    def moment(self, time: int, signs: tuple[int, ...]) -> Moment:
        """A moment by name, as in `known`."""
        return Moment(jnp.int32(time), jnp.asarray(signs, float))


def matches(moment: Moment, action: Int[Array, " agent"]) -> Float[Array, ""]:
    """1 if every agent's action says its sign."""
    return (2.0 * action - 1 == moment.signs).all().astype(float)


def payoff(*table: float | tuple[float, ...]):
    """The reward of a matrix game: one agent's actions, or two agents' joint actions."""
    return lambda moment, action: jnp.asarray(table, float)[tuple(action)]


def one(moment: Moment, action: Int[Array, " agent"]) -> Float[Array, ""]:
    """Always 1."""
    return jnp.float32(1.0)


def says(signs: tuple[int, ...]) -> list[int]:
    """The actions that match the signs."""
    return [(sign + 1) // 2 for sign in signs]


def kinds(sign):
    """The actions that say the sign, the opposite, and the sign."""
    return [(sign + 1) // 2, (1 - sign) // 2, (sign + 1) // 2]


UP, DOWN = (1,), (-1,)

CONSTANT = Probe("constant", one, {(0, UP): 1.0})
SIGHT = Probe(
    "sight",
    lambda moment, action: moment.signs[0],
    {(0, UP): 1.0, (0, DOWN): -1.0},
    signs="one",
)
DELAY = Probe(
    "delay",
    lambda moment, action: (moment.time == 1).astype(float),
    {(0, UP): GAMMA, (1, UP): 1.0},
    length=2,
    clock=True,
)
CHOICE = Probe("choice", payoff(0.0, 1.0), {(0, UP): 1.0}, actions=2, best=lambda signs: [1])
MATCH = Probe("match", matches, {(0, UP): 1.0, (0, DOWN): 1.0}, actions=2, signs="one", best=says)
ENDLESS = Probe("endless", one, {(0, UP): 1 / (1 - GAMMA)}, length=3, end="truncated")
FINITE = Probe(
    "finite",
    one,
    {(0, UP): 1 + GAMMA + GAMMA**2, (1, UP): 1 + GAMMA, (2, UP): 1.0},
    length=3,
    clock=True,
)
TEMPTATION = Probe(
    "temptation",
    payoff(10.0, 0.0, 1.0),
    {(0, UP): 1.0},
    actions=3,
    forbidden=(0,),
    best=lambda signs: [2],
)
TOGETHER = Probe(
    "together",
    matches,
    {(0, (a, b)): 1.0 for a in (-1, 1) for b in (-1, 1)},
    agents=2,
    actions=2,
    signs="each",
    best=says,
)
MATRIX = Probe(
    "matrix",
    payoff((1.0, 0.4), (0.3, 0.0)),
    {(0, (1, 1)): 1.0},
    agents=2,
    actions=2,
    best=lambda signs: [0, 0],
)
PATIENCE = Probe(
    "patience",
    lambda moment, action: (moment.time == 2) * matches(moment, action),
    {(t, (a, b)): GAMMA ** (2 - t) for t in range(3) for a in (-1, 1) for b in (-1, 1)},
    agents=2,
    actions=2,
    length=3,
    signs="each",
    clock=True,
    best=says,
)
"""Both must match their signs at the last of three steps; before it nothing counts."""

RECALL = Probe(
    "recall",
    lambda moment, action: (moment.time == 1) * matches(moment, action),
    {(0, UP): GAMMA, (0, DOWN): GAMMA},
    actions=2,
    length=2,
    signs="each, at first",
    clock=True,
    best=says,
)
"""What is to be said was seen a step before."""
MORTAL = Probe(
    "mortal",
    lambda moment, action: (
        (moment.time == 1) * ((action == 1) | (moment.signs < 0)).all().astype(float)
    ),
    {(0, (a, b)): GAMMA for a in (-1, 1) for b in (-1, 1)} | {(1, UP * 2): 1.0},
    agents=2,
    actions=2,
    length=2,
    signs="each",
    clock=True,
    mortal=True,
    best=lambda signs: [1, 1],
)
"""Who has survived the first step must say so."""


def miss(moment: Moment, action: Float[Array, "agent dimension"]) -> Float[Array, ""]:
    """The squared distance of all actions from half the sign, 0 in every other dimension."""
    return jnp.square(action.at[:, 0].add(-moment.signs / 2)).sum()


AIM = Probe(
    "aim",
    lambda moment, action: 1.0 - miss(moment, action),
    {(0, UP): 1.0, (0, DOWN): 1.0},
    actions=2,
    continuous=True,
    signs="one",
    forbidden=(1,),
    best=lambda signs: [[signs[0] / 2, 0.0]],
)
WAIT = Probe(
    "wait",
    lambda moment, action: (moment.time == 1) * (1.0 - miss(moment, action)),
    {(t, (a, b)): GAMMA ** (1 - t) for t in range(2) for a in (-1, 1) for b in (-1, 1)},
    agents=2,
    actions=1,
    continuous=True,
    length=2,
    signs="each",
    clock=True,
    best=lambda signs: [[signs[0] / 2], [signs[1] / 2]],
)
MEET = Probe(
    "meet",
    lambda moment, action: 1.0 - (action.sum() - 1.0) ** 2 - (action[0] - action[1])[0] ** 2,
    {(0, (1, 1)): 1.0},
    agents=2,
    actions=1,
    continuous=True,
    best=lambda signs: [[0.5], [0.5]],
)
"""What one does best depends on what the other does."""

KINDS = Probe(
    "kinds",
    lambda moment, action: (action == jnp.array(kinds(moment.signs[0]))).all().astype(float),
    {(0, (a,) * 3): 1.0 for a in (-1, 1)},
    agents=3,
    actions=2,
    signs="one",
    best=lambda signs: [int(action) for action in kinds(signs[0])],
)
"""All see the same sign; the second of three agents must say the opposite."""

ONE_AGENT = (CONSTANT, SIGHT, DELAY, CHOICE, MATCH, ENDLESS, FINITE, TEMPTATION)
TWO_AGENTS = (TOGETHER, MATRIX, PATIENCE, MORTAL)
THREE_AGENTS = (KINDS,)
CONTINUOUS = (AIM, WAIT, MEET)
