"""Matrix games in pure JAX: all agents act at once and receive the payoff of the joint action.

They are small enough to be solved by hand but hard to learn: an agent's best action depends on the
others', and the safe action is not the best one.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs import render
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.errors import UserError, nearest
from perla.files import explained, read_regular
from perla.types import Array, Float, Int, PRNGKeyArray

EXAMPLES = {
    "climbing": "the climbing game: 2 agents, 3 actions (Claus and Boutilier, 1998)",
    "penalty-100": "their penalty game, -100 where agents miss each other; also penalty-0, -25, …",
    "overgeneralisation-n2-a3": "8 if all N agents play action 0 of A, -12 if only some do",
    "random-n3-a4-s0": "payoffs drawn from a standard normal: any N, A and seed",
    "climbing-t25": "played 25 times an episode; -t… may follow every game",
    "path/to/payoffs.json": "your own game: nested lists, an axis for each agent's actions",
}
"""Names of games, with a description."""

MOST = 2**20
"""Largest number of payoffs of a table, and of actions of all agents together."""

JointActionDistribution = Literal["uniform", "balanced"]
"""A distribution of joint actions. `uniform`: all joint actions are equally likely. `balanced`
(payoff-balanced): all distinct payoffs are equally likely, and so are the joint actions of each."""

LARGEST = float(np.finfo(np.float32).max)
"""Largest absolute payoff."""


@runtime_checkable
class Payoff(Protocol):
    """The common payoff of joint actions."""

    @property
    def actions(self) -> tuple[int, ...]:
        """Number of actions of each agent."""
        ...

    @property
    def rule(self) -> Any:
        """A complete description as plain data, written into every result."""
        ...

    def __call__(self, joint: Int[Array, "*batch agent"]) -> Float[Array, "*batch"]:
        """The payoffs of joint actions; undefined for actions that an agent does not have."""
        ...

    def sample_payoff_balanced(self, key: PRNGKeyArray, size: int) -> Int[Array, "size agent"]:
        """Sample joint actions with equally likely payoffs, uniformly within each payoff."""
        ...


@dataclass(frozen=True)
class Overgeneralisation:
    """8 if all agents play action 0, −12 if some but not all do, 0 if none does.

    With 2 agents of 3 actions this is the game of QTRAN (Son et al., 2019) and the paper's Table 1.
    The paper scales it to 20 agents and to 15 actions, and states for the larger games only that
    the payoff is 8 if all choose the first action; −12 and 0 as above are our interpretation.

    Payoffs are computed from the actions, without a table of |A|^N entries.
    """

    agents: int
    each: int
    """Number of actions of every agent."""

    @property
    def actions(self) -> tuple[int, ...]:
        """Number of actions of each agent."""
        return (self.each,) * self.agents

    @property
    def rule(self) -> str:
        """The rule in words."""
        return "8 if all play action 0, -12 if some but not all do, 0 if none does"

    def __call__(self, joint: Int[Array, "*batch agent"]) -> Float[Array, "*batch"]:
        """The payoffs of joint actions."""
        first = joint == 0
        return jnp.where(first.all(-1), 8.0, jnp.where(first.any(-1), -12.0, 0.0))

    def sample_payoff_balanced(self, key: PRNGKeyArray, size: int) -> Int[Array, "size agent"]:
        """Sample joint actions with equally likely payoffs, uniformly within each payoff."""
        key_payoff, key_count, key_order, key_other = jax.random.split(key, 4)
        # The number n of agents that play action 0 is 0, N, or in between, where there are
        # C(N, n) (A − 1)^(N − n) joint actions.
        some = np.arange(1, self.agents)
        weights = [math.comb(self.agents, n) * (self.each - 1) ** (self.agents - n) for n in some]
        logits = jnp.log(jnp.array(weights, float))
        index = jax.random.categorical(key_count, logits, shape=(size,))
        payoff = jax.random.randint(key_payoff, (size,), 0, 3)
        count = jnp.select([payoff == 0, payoff == 1], [0, self.agents], jnp.asarray(some)[index])
        rank = jax.random.uniform(key_order, (size, self.agents)).argsort(-1).argsort(-1)
        other = jax.random.randint(key_other, (size, self.agents), 1, self.each)
        return jnp.where(rank < count[:, None], 0, other)


@dataclass(frozen=True, eq=False)
class Table:
    """A table of payoffs."""

    values: Float[np.ndarray, "*joint"]
    """The payoffs, with an axis for each agent's actions."""

    @property
    def actions(self) -> tuple[int, ...]:
        """Number of actions of each agent."""
        return self.values.shape

    @property
    def rule(self) -> Any:
        """The payoffs as nested lists, or their digest if there are more than 64."""
        if self.values.size <= 64:
            return self.values.tolist()
        return f"sha256:{hashlib.sha256(self.values.astype('<f4').tobytes()).hexdigest()}"

    def __call__(self, joint: Int[Array, "*batch agent"]) -> Float[Array, "*batch"]:
        """The payoffs of joint actions."""
        return jnp.asarray(self.values)[tuple(jnp.moveaxis(joint, -1, 0))]

    def sample_payoff_balanced(self, key: PRNGKeyArray, size: int) -> Int[Array, "size agent"]:
        """Sample joint actions with equally likely payoffs, uniformly within each payoff."""
        payoffs, inverse, counts = np.unique(self.values, return_inverse=True, return_counts=True)
        by_payoff = jnp.asarray(np.argsort(inverse.reshape(-1), kind="stable"))
        starts = jnp.asarray(np.cumsum(counts) - counts)
        key_payoff, key_offset = jax.random.split(key)
        index = jax.random.randint(key_payoff, (size,), 0, len(payoffs))
        offset = jax.random.randint(key_offset, (size,), 0, jnp.asarray(counts)[index])
        joint = by_payoff[starts[index] + offset]
        return jnp.stack(jnp.unravel_index(joint, self.values.shape), -1)


class State(NamedTuple):
    """The state of an episode; payoffs do not depend on it."""

    action: Int[Array, "*batch agent"]
    """The joint action played last; −1 before the first."""
    time: Int[Array, "*batch"]
    """Steps taken in this episode."""


@dataclass(frozen=True)
class MatrixGame:
    """A common-payoff game of `limit` steps, an [`Env`][perla.envs.protocol.Env].

    Observations and the state are the constant 1. (In EPyMARL's stateless matrix games they are
    the constant 0, from which the weights of a first layer learn nothing.) Agents with fewer
    actions than others have the rest masked.

    A game of one step *terminates*. A longer game is *truncated* after `limit` steps: observations
    do not contain the time, so the only value that a critic can learn is that of an endless game.

    Raises `UserError` for an impossible game.
    """

    name: str
    """The name, without the family."""
    payoff: Payoff
    limit: int = 1
    """Steps of an episode."""

    def __post_init__(self) -> None:
        check_actions(self.name, self.payoff.actions)
        if self.limit < 1:
            raise UserError(
                f"{self.name}: a limit of {self.limit} steps is too small: at least 1 is needed"
            )

    @property
    def spec(self) -> Spec:
        """Sizes and rules of the environment."""
        actions, once = self.payoff.actions, self.limit == 1
        return Spec(
            id=f"matrix:{self.name}" + ("" if once else f"-t{self.limit}"),
            agents=len(actions),
            obs=1,
            state=1,
            actions=actions,
            limit=self.limit,
            early_truncation=False,
            reward="common",
            rules={
                "payoff": self.payoff.rule,
                "limit": self.limit,
                "limit_is": "termination" if once else "truncation",
                "observation": "the constant 1",
                "state": "the constant 1",
            },
        )

    def reset(self, key: PRNGKeyArray) -> tuple[State, Observation]:
        """Begin an episode; all first states are the same, and `key` is not used."""
        agents = len(self.payoff.actions)
        return State(jnp.full(agents, -1), jnp.zeros((), jnp.int32)), self.observe()

    def step(
        self, key: PRNGKeyArray, state: State, action: Int[Array, " agent"]
    ) -> tuple[State, TimeStep]:
        """Play one step. The step is deterministic: `key` is not used."""
        state = State(action, state.time + 1)
        over = state.time >= self.limit
        observation = self.observe()
        return state, TimeStep(
            observation=observation,
            reward=jnp.broadcast_to(self.payoff(action), action.shape),
            terminated=over & (self.limit == 1),
            truncated=over & (self.limit > 1),
            final=observation,
        )

    def observe(self) -> Observation:
        """The observation of every step."""
        spec = self.spec
        avail = np.arange(spec.max_actions)[None, :] < np.array(spec.actions)[:, None]
        return Observation(
            obs=jnp.ones((spec.agents, 1)), state=jnp.ones(1), avail=jnp.asarray(avail)
        )

    def sample_joint_actions(
        self, distribution: JointActionDistribution, key: PRNGKeyArray, size: int
    ) -> Int[Array, "size agent"]:
        """Sample joint actions from `distribution`, independently of any policy."""
        if distribution == "balanced":
            return self.payoff.sample_payoff_balanced(key, size)
        shape = size, len(self.payoff.actions)
        numbers = jnp.broadcast_to(jnp.asarray(self.payoff.actions), shape)
        return jax.random.randint(key, shape, 0, numbers)

    def table(self) -> Float[np.ndarray, "*joint"]:
        """The payoffs of all joint actions, an axis for each agent's.

        Raises `UserError` if there are more than `MOST`.
        """
        check_table(self.name, self.payoff.actions)
        joint = np.moveaxis(np.indices(self.payoff.actions), 0, -1)
        return np.asarray(self.payoff(jnp.asarray(joint)))

    @property
    def action_names(self) -> tuple[str, ...]:
        """The number of each action."""
        return tuple(str(number) for number in range(max(self.payoff.actions)))

    def scene(self, state: State) -> render.Table:
        """The table of payoffs, with the last joint action marked.

        For two agents the first agent's actions are rows. For more agents there is a row for each
        agent, with the payoff at the agent's last action.
        """
        actions, played = self.payoff.actions, np.asarray(state.action)
        begun = bool(played[0] >= 0)
        if len(actions) == 2 and math.prod(actions) <= MOST:
            values = self.table()
            marked = [tuple(played.tolist())] if begun else []
        else:
            values = np.full((len(actions), max(actions)), np.nan)
            marked = list(enumerate(played.tolist())) if begun else []
            for cell in marked:
                values[cell] = self.payoff(jnp.asarray(played))
        return render.Table(values, marked)

    def render(self, state: State) -> np.ndarray:
        """An image of `scene`: uint8 `[height, width, 3]`, at most about 400 pixels wide."""
        return render.draw_table(**self.scene(state)._asdict())


# --- Names --------------------------------------------------------------------------------------


TABLES = {"climbing": ((11, -30, 0), (-30, 7, 0), (0, 6, 5))} | {
    f"penalty-{k}": ((-k, 0, 10), (0, 2, 0), (10, 0, -k)) for k in (0, 25, 50, 75, 100)
}
"""The games of Claus and Boutilier (1998), 2 agents of 3 actions; rows are the first agent's.

They are as in EPyMARL's benchmark (Papoudakis et al., 2021). The penalty games are the original
ones up to the order of an agent's actions: there the 10s are on the diagonal.
"""

_NAME = re.compile(r"(.+?)(?:-n(\d{1,6}))?(?:-a(\d{1,6}))?(?:-s(\d{1,6}))?(?:-t(\d{1,6}))?")
_NUMBERS = {"n": "number of agents", "a": "number of actions", "s": "seed", "t": "limit"}
"""Numbers that may follow a game's name, in this order."""


def make_env(name: str, /, **options: Any) -> MatrixGame:
    """The game of a name such as `climbing`, `overgeneralisation-n20-a3` or `my/payoffs.json`.

    The grammar is `{game}[-n{agents}][-a{actions}][-s{seed}][-t{steps}]`; without `-t` an episode
    has one step. There are no options. Raises `UserError` for an unknown name, for a file without
    valid payoffs, and for any option.
    """
    for option in options:
        raise UserError(f"unknown matrix option {option!r}; a matrix game's name says everything")
    match = _NAME.fullmatch(name)
    game, *numbers = match.groups() if match else (name,)
    given = {which: int(text) for which, text in zip(_NUMBERS, numbers, strict=False) if text}
    limit = given.pop("t", 1)
    if game == "overgeneralisation":
        agents, each = _take(name, game, given, "na")
        return MatrixGame(f"{game}-n{agents}-a{each}", Overgeneralisation(agents, each), limit)
    if game == "random":
        agents, each, seed = _take(name, game, given, "nas")
        full_name = f"{game}-n{agents}-a{each}-s{seed}"
        return MatrixGame(full_name, random_table(full_name, (each,) * agents, seed), limit)
    if game in TABLES:
        # Their sizes are allowed in the name, since other games require them.
        _take(name, game, dict(given.items() - {("n", 2), ("a", 3)}), "")
        return MatrixGame(game, Table(np.array(TABLES[game], np.float32)), limit)
    if game.endswith(".json"):
        _take(name, game, given, "")
        return MatrixGame(game, read_table(game), limit)
    if re.search(r"[./\\]", game):
        raise UserError(f"{game}: payoffs are read from JSON files, whose names end in .json")
    raise nearest(game, [*TABLES, "overgeneralisation", "random"], what="matrix game")


def _take(name: str, game: str, given: Mapping[str, int], wanted: str) -> list[int]:
    """The numbers that a game requires. Raises `UserError` if `given` has others."""
    problems = [f"lacks its {_NUMBERS[which]}" for which in wanted if which not in given]
    problems += [f"takes no '{which}{given[which]}'" for which in given if which not in wanted]
    if problems:
        example = next((known for known in EXAMPLES if known.startswith(game)), game)
        raise UserError(f"matrix game {name!r} {problems[0]}; for example {example!r}")
    return [given[which] for which in wanted]


# --- Tables -------------------------------------------------------------------------------------


def random_table(name: str, actions: tuple[int, ...], seed: int) -> Table:
    """Independent standard normal payoffs of agents with so many `actions`."""
    check_table(name, actions)
    return Table(np.random.default_rng(seed).standard_normal(actions, np.float32))


def read_table(path: str) -> Table:
    """The payoffs in a JSON file: nested lists of numbers, an axis for each agent's actions.

    `[[11, -30, 0], [-30, 7, 0], [0, 6, 5]]` is the climbing game; the outermost list is the first
    agent's. Agents may have different numbers of actions. Raises `UserError`, which names the file
    and the entry, for any other content.
    """
    with explained(Path(path)):
        text = read_regular(Path(path), follow=True)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, list):
        raise UserError(f"{path}: not a list: payoffs are lists of lists of numbers")
    shape: list[int] = []
    row: Any = content
    while isinstance(row, list):
        shape.append(len(row))
        row = row[0] if row else None
    check_table(path, shape)
    try:
        entries = np.fromiter(_entries(content, shape), np.float32, count=math.prod(shape))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Table(entries.reshape(shape))


def _entries(value: Any, shape: Sequence[int], place: tuple[int, ...] = ()) -> Iterator[float]:
    """The numbers in nested lists of this `shape`, row by row. Raises `UserError` for others."""
    where = "".join(f"[{index}]" for index in place)
    if not shape:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"entry {where} is {json.dumps(value)[:40]}, not a number")
        if not abs(value) <= LARGEST:
            raise UserError(
                f"entry {where} is {json.dumps(value)[:40]}, not a finite 32-bit number"
            )
        yield value
    elif not isinstance(value, list):
        raise UserError(f"row {where} is {json.dumps(value)[:40]}, not a list of {shape[0]}")
    elif len(value) != shape[0]:
        raise UserError(
            f"row {where} has {len(value)} entries, not {shape[0]} as row {'[0]' * len(place)}"
        )
    else:
        for index, inner in enumerate(value):
            yield from _entries(inner, shape[1:], (*place, index))


def check_actions(name: str, actions: Sequence[int]) -> None:
    """Raise `UserError` unless agents with so many `actions` can play a game."""
    if len(actions) < 2:
        raise UserError(f"{name}: a game needs at least 2 agents, not {len(actions)}")
    for agent, number in enumerate(actions):
        if number < 2:
            raise UserError(
                f"{name}: an agent needs at least 2 actions, agent {agent} has {number}"
            )
    if sum(actions) > MOST:
        raise UserError(f"{name}: more than {MOST:,} actions of all agents together")


def check_table(name: str, actions: Sequence[int]) -> None:
    """Raise `UserError` if there are too many joint actions for a table."""
    check_actions(name, actions)
    if sum(map(math.log2, actions)) > math.log2(MOST):
        raise UserError(f"{name}: more than {MOST:,} payoffs, the most that a table holds")
