"""Congestion games in pure JAX: many agents share a few resources and earn a noisy common reward.

They are dense and easy to solve with the state in hand, and hard to learn in: an agent's own choice
moves the reward little, the simultaneous choices of the others and the noise move it much. A dial
says which of the two does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs import render
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.errors import UserError, nearest
from perla.types import Array, Float, Int, PRNGKeyArray

EXAMPLES = {
    "n5-others0.9": "5 agents share 4 resources; 90% of the unexplained variance is the others'",
    "n20-others0.5": "20 agents; half of the unexplained variance is the others', half is noise",
    "n50-others0.1": "50 agents; a tenth of the unexplained variance is the others'",
}
"""Names of games, with a description."""
PATTERNS = {
    "nN-othersD": "any other: N agents from 2 to 50, and the others' share D from 0.01 to 1"
}
"""All names, with placeholders."""

VALUES = (0.25, 1.0, 4.0)
"""A resource's value at each level: the payoff of its first agent."""
HOME = 0.2
"""Payoff of an agent that chooses its home."""
AGENTS, RESOURCES = (2, 50), (2, 6)
"""Smallest and largest number."""
LEAST = 0.01
"""Smallest share of the others: the noise grows beyond any bound as the share falls to 0."""


class State(NamedTuple):
    """The state of an episode."""

    level: Int[Array, "*batch resource"]
    """Index into `VALUES` of each resource."""
    home: Int[Array, "*batch agent"]
    """Each agent's home, a resource."""
    load: Int[Array, "*batch resource"]
    """Agents at each resource in the last step; −1 before the first."""
    paid: Int[Array, "*batch resource"]
    """Levels at which that step was paid."""
    time: Int[Array, "*batch"]
    """Steps taken in this episode."""


class Decomposition(NamedTuple):
    """Variance of the reward of one step under uniform policies, given the state, by its causes.

    own + others + interaction + noise is the whole variance (Hoeffding's decomposition, with the
    others' joint action as one variable). Units: squared rewards.
    """

    own: Float[np.ndarray, "*batch"]
    """Var E[r | s, aᵢ], the mean over agents i: the part that one agent's own action explains."""
    others: Float[np.ndarray, "*batch"]
    """Var E[r | s, a₋ᵢ], the mean over agents i: the part that the others' actions explain."""
    interaction: Float[np.ndarray, "*batch"]
    """The part that only the own action and the others' together explain."""
    noise: Float[np.ndarray, "*batch"]
    """The environment's noise."""

    @property
    def share(self) -> Float[np.ndarray, "*batch"]:
        """The dial: (others + interaction) / (others + interaction + noise), the others' share of
        Var(r | s, aᵢ)."""
        by_others = self.others + self.interaction
        return by_others / (by_others + self.noise)


class Tables(NamedTuple):
    """Constants of a game for each state of the resources, in the order of `np.ndindex`."""

    uniform: Float[np.ndarray, "state"]
    """U, the mean welfare under uniform policies."""
    best: Float[np.ndarray, "state"]
    """W*, the welfare of the best allocation."""
    allocation: Int[np.ndarray, "state resource"]
    """Agents at each resource in the best allocation."""
    parts: Decomposition
    """The variance of the reward in each state."""


@dataclass(frozen=True)
class Congestion:
    """A repeated congestion game with a common reward, an [`Env`][perla.envs.protocol.Env].

    Every agent chooses a resource. With n agents at a resource of value v the k-th adds v q^(k−1),
    where q = exp(−M/N), so that crowding costs the same in games of any N; an agent at its home
    adds `HOME`:

        W(s, a) = Σₘ vₘ (1 − q^nₘ) / (1 − q) + HOME · #{i: aᵢ = homeᵢ}
        r = (W(s, a) − U(s)) / (W*(s) − U(s)) + σ(s) ε,    ε ~ N(0, 1)

    U is the mean of W under uniform policies and W* its maximum: in every state uniform policies
    earn 0 and the best allocation earns 1 a step. σ follows from `others` (`Decomposition.share`).

    All agents observe the resources' values, and each its own home. Levels and homes do not depend
    on actions: each level is drawn anew with probability `change` a step, and homes are dealt anew
    at every step, N/M agents (rounded) for each resource.

    Raises `UserError` for impossible numbers.
    """

    agents: int
    others: float
    """The others' share of the reward's variance, given the state and the own action, under uniform
    policies; the rest is noise."""
    resources: int = 4
    change: float = 0.2
    """Probability that a resource draws its level anew, at each step."""
    limit: int = 25
    """Steps of an episode."""

    def __post_init__(self) -> None:
        for name, value, (low, high) in (
            ("agents", self.agents, AGENTS),
            ("others", self.others, (LEAST, 1)),
            ("resources", self.resources, RESOURCES),
            ("change", self.change, (0, 1)),
        ):
            if not low <= value <= high:
                raise UserError(f"congestion: {name} = {value}: expected {low} to {high}")
        if self.limit < 1:
            raise UserError(f"congestion: limit = {self.limit}: expected 1 or more")

    @cached_property
    def spec(self) -> Spec:
        """Sizes and rules of the environment."""
        n, m = self.agents, self.resources
        return Spec(
            id=f"congestion:n{n}-others{self.others:g}",
            agents=n,
            obs=2 * m,
            state=m + n * m,
            actions=(m,) * n,
            limit=self.limit,
            early_truncation=False,
            reward="common",
            rules={
                "others": self.others,
                "resources": m,
                "change": self.change,
                "limit": self.limit,
                "limit_is": "truncation",
                "values": list(VALUES),
                "home": HOME,
                "reward": "0 for uniform policies, 1 for the best allocation, plus noise",
            },
        )

    def reset(self, key: PRNGKeyArray) -> tuple[State, Observation]:
        """Begin an episode with random levels and homes."""
        key_level, key_home = jax.random.split(key)
        level = jax.random.randint(key_level, (self.resources,), 0, len(VALUES))
        nobody = jnp.full(self.resources, -1)
        state = State(level, self._deal(key_home), nobody, level, jnp.int32(0))
        return state, self.observe(state)

    def step(
        self, key: PRNGKeyArray, state: State, action: Int[Array, " agent"]
    ) -> tuple[State, TimeStep]:
        """Pay the agents for their choices, then change levels and homes."""
        key_noise, key_change, key_level, key_home = jax.random.split(key, 4)
        noise = self.deviation(state) * jax.random.normal(key_noise)
        reward = self.expected_reward(state, action) + noise
        changes = jax.random.bernoulli(key_change, self.change, state.level.shape)
        drawn = jax.random.randint(key_level, state.level.shape, 0, len(VALUES))
        after = State(
            level=jnp.where(changes, drawn, state.level),
            home=self._deal(key_home),
            load=self._load(action),
            paid=state.level,
            time=state.time + 1,
        )
        observation = self.observe(after)
        return after, TimeStep(
            observation=observation,
            reward=jnp.broadcast_to(reward, action.shape),
            terminated=jnp.zeros((), bool),
            truncated=after.time >= self.limit,
            final=observation,
        )

    def observe(self, state: State) -> Observation:
        """The resources' values, scaled to −1 … 1, and for each agent its home, one-hot; the state
        is the values and all homes."""
        value = state.level / (len(VALUES) - 1) * 2 - 1.0
        home = jax.nn.one_hot(state.home, self.resources)
        everywhere = jnp.broadcast_to(value, home.shape)
        return Observation(
            obs=jnp.concatenate([everywhere, home], -1),
            state=jnp.concatenate([value, home.reshape(-1)]),
            avail=jnp.ones(home.shape, bool),
        )

    def expected_reward(self, state: State, action: Int[Array, " agent"]) -> Float[Array, ""]:
        """The reward of a joint action without its noise: 1 at best."""
        uniform, best = (jnp.asarray(table, jnp.float32) for table in self.tables[:2])
        index = self._index(state)
        return (self.welfare(state, action) - uniform[index]) / (best - uniform)[index]

    def deviation(self, state: State) -> Float[Array, ""]:
        """σ, the standard deviation of the reward's noise."""
        table = jnp.asarray(np.sqrt(self.tables.parts.noise), jnp.float32)
        return table[self._index(state)]

    def welfare(self, state: State, action: Int[Array, " agent"]) -> Float[Array, ""]:
        """W, the sum of all payoffs, before it is scaled to rewards."""
        value = jnp.asarray(VALUES)[state.level]
        # Σₘ vₘ (1 + q + … + q^(nₘ − 1)) + HOME · #{i: aᵢ = homeᵢ}
        shared = value * (1 - self._q ** self._load(action)) / (1 - self._q)
        return shared.sum() + HOME * (action == state.home).sum()

    def decomposition(self) -> Decomposition:
        """The variance of the reward of one step under uniform policies, by its causes, averaged
        over states: they are all equally likely."""
        return Decomposition(*(part.mean() for part in self.tables.parts))

    @cached_property
    def tables(self) -> Tables:
        """Constants of each state of the resources; homes do not change them."""
        value = np.array(VALUES)[_states(self.resources)]
        homes = np.bincount(self._homes, minlength=self.resources)
        allocation, best = best_allocations(value, homes, self._q)
        # U = Σₘ vₘ (1 − E q^nₘ) / (1 − q) + HOME · N / M, with E q^nₘ = (1 − (1 − q) / M)^N
        kept = 1 - (1 - self._q) / self.resources
        uniform = value.sum(-1) * (1 - kept**self.agents) / (1 - self._q)
        uniform += HOME * self.agents / self.resources
        own, others, interaction = (
            part / (best - uniform) ** 2 for part in variances(value, homes, self._q)
        )
        # others / (others + noise) = the dial, with the interaction among the others' part.
        noise = (others + interaction) * (1 - self.others) / self.others
        return Tables(uniform, best, allocation, Decomposition(own, others, interaction, noise))

    @property
    def _q(self) -> float:
        """The payoff of an agent relative to that of the one before it at the same resource."""
        return float(np.exp(-self.resources / self.agents))

    @property
    def _homes(self) -> Int[np.ndarray, " agent"]:
        """The homes that are dealt."""
        return np.arange(self.agents) % self.resources

    def _deal(self, key: PRNGKeyArray) -> Int[Array, " agent"]:
        return jax.random.permutation(key, jnp.asarray(self._homes))

    def _load(self, action: Int[Array, " agent"]) -> Int[Array, " resource"]:
        return jax.nn.one_hot(action, self.resources, dtype=jnp.int32).sum(0)

    def _index(self, state: State) -> Int[Array, ""]:
        """The row of `tables`."""
        return (state.level * len(VALUES) ** np.arange(self.resources)[::-1]).sum()

    @property
    def action_names(self) -> tuple[str, ...]:
        """The number of each resource."""
        return tuple(str(number) for number in range(self.resources))

    def scene(self, state: State) -> render.Table:
        """The last step as a table with a column for each resource: its value, the agents at it,
        and below zero those of the best allocation. Only the values before the first step."""
        level = np.asarray(state.paid)
        rows = np.full((3, self.resources), np.nan)
        rows[0] = np.array(VALUES)[level]
        if state.time > 0:
            rows[1] = np.asarray(state.load)
            rows[2] = -self.tables.allocation[
                np.ravel_multi_index(level, (len(VALUES),) * len(level))
            ]
        return render.Table(rows, [])

    def render(self, state: State) -> np.ndarray:
        """An image of `scene`: uint8 `[height, width, 3]`, about 400 pixels wide."""
        return render.draw_table(**self.scene(state)._asdict())


# --- Exact values -------------------------------------------------------------------------------


def _states(resources: int) -> Int[np.ndarray, "state resource"]:
    """The levels of every state of the resources."""
    return np.indices((len(VALUES),) * resources).reshape(resources, -1).T


def best_allocations(
    value: Float[np.ndarray, "state resource"], homes: Int[np.ndarray, " resource"], q: float
) -> tuple[Int[np.ndarray, "state resource"], Float[np.ndarray, " state"]]:
    """The numbers of agents at each resource with the largest welfare, and that welfare.

    `homes` are the agents that are at home at each resource. Of nₘ agents at resource m at most
    min(nₘ, homesₘ) are at home, and there is an assignment in which so many are, everywhere. The
    welfare is then a sum of functions that are concave in nₘ: adding agents one by one where they
    add most is optimal.
    """
    count = np.zeros(value.shape, int)
    best = np.zeros(len(value))
    for _ in range(homes.sum()):
        gain = value * q**count + HOME * (count < homes)
        chosen = gain.argmax(-1)[:, None]
        best += np.take_along_axis(gain, chosen, -1)[:, 0]
        np.put_along_axis(count, chosen, np.take_along_axis(count, chosen, -1) + 1, -1)
    return count, best


def variances(
    value: Float[np.ndarray, "state resource"], homes: Int[np.ndarray, " resource"], q: float
) -> tuple[Float[np.ndarray, " state"], ...]:
    """The own, the others' and the interaction's part of Var W under uniform policies, in closed
    form, the means over agents."""
    agents, resources = homes.sum(), len(homes)
    kept, scale = 1 - (1 - q) / resources, 1 / (1 - q)
    own, others = np.zeros(len(value)), np.zeros(len(value))
    for home in np.flatnonzero(homes):
        at_home = np.arange(resources) == home
        weight = homes[home] / agents
        # E[W | aᵢ = k] = c + (1 − (1 − q)/M)^(N−1) vₖ + HOME · 1[k = homeᵢ]
        own += weight * (kept ** (agents - 1) * value + HOME * at_home).var(-1)
        # E[W | a₋ᵢ] = c − Σₘ vₘ (1 − (1 − q)/M) q^(agents but i at m) / (1 − q) + HOME · #{j ≠ i …}
        others += weight * _variance(value, homes - at_home, q, kept * scale)
    whole = _variance(value, homes, q, scale)
    return own, others, whole - own - others


def _variance(
    value: Float[np.ndarray, "state resource"],
    homes: Int[np.ndarray, " resource"],
    q: float,
    scale: float,
) -> Float[np.ndarray, " state"]:
    """Var(scale · Σₘ vₘ q^nₘ − HOME · #{j: aⱼ = homeⱼ}) under uniform policies, nₘ multinomial."""
    agents, resources = homes.sum(), len(homes)
    kept = 1 - (1 - q) / resources
    # E q^nₘ, E q^2nₘ and E q^(nₘ + nₗ) are values of the multinomial's generating function.
    mean = kept**agents
    square = (1 - (1 - q**2) / resources) ** agents
    product = (1 - 2 * (1 - q) / resources) ** agents
    squares, total = (value**2).sum(-1), value.sum(-1)
    crowds = squares * (square - mean**2) + (total**2 - squares) * (product - mean**2)
    matches = agents / resources * (1 - 1 / resources)
    # Cov(q^nₘ, 1[aⱼ = h]) = (1 − (1 − q)/M)^(N−1) / M · (q if h = m, else 1, less 1 − (1 − q)/M)
    common = homes * (q - kept) + (agents - homes) * (1 - kept)
    both = kept ** (agents - 1) / resources * (value * common).sum(-1)
    return scale**2 * crowds + HOME**2 * matches - 2 * scale * HOME * both


# --- Names --------------------------------------------------------------------------------------


def make_env(
    name: str,
    /,
    *,
    resources: int = 4,
    change: float = 0.2,
    limit: int = 25,
    **unknown: Any,
) -> Congestion:
    """The game of a name such as `n20-others0.5`: N agents, and the others' share.

    Raises `UserError` for any other name, for unknown options and for numbers out of range.
    """
    for option in unknown:
        raise nearest(option, ("resources", "change", "limit"), what="congestion option")
    match = re.fullmatch(r"n(\d{1,6})-others(\d{1,6}(?:\.\d{1,6})?)", name)
    if match is None:
        raise UserError(
            f"unknown congestion game {name!r}: expected nN-othersD, for example 'n20-others0.5'"
        )
    return Congestion(int(match[1]), float(match[2]), resources, change, limit)
