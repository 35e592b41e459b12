"""The parts of a return's variance by enumeration: small games as tables, and dynamic programming
over the steps of an episode. The oracle of `perla.variance`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.congestion import Congestion
from perla.envs.congestion import State as CongestionState
from perla.envs.matrix import MatrixGame
from perla.envs.protocol import Observation, Spec, TimeStep


@dataclass(frozen=True, eq=False)
class Game:
    """A game as tables; `joint` is an axis of all joint actions, the last agent's fastest."""

    start: np.ndarray
    """`[state]`, probabilities."""
    reward: np.ndarray
    """`[state, joint, agent]`, means."""
    deviation: np.ndarray
    """`[state]`, the standard deviation of the common noise of the rewards."""
    transition: np.ndarray
    """`[state, joint, state]`."""
    ends: np.ndarray
    """`[state, joint]`, the probability that the episode terminates."""
    obs: np.ndarray
    """`[state, agent, feature]`."""
    actions: int
    limit: int

    @property
    def agents(self) -> int:
        return self.reward.shape[-1]

    @property
    def joint(self) -> np.ndarray:
        """All joint actions `[joint, agent]`."""
        return np.array(list(itertools.product(range(self.actions), repeat=self.agents)))


class PlayState(NamedTuple):
    index: jax.Array
    time: jax.Array


@dataclass(frozen=True, eq=False)
class Play:
    """A `Game` as an environment in JAX."""

    game: Game

    @property
    def spec(self) -> Spec:
        game = self.game
        return Spec(
            id="tests:game",
            agents=game.agents,
            obs=game.obs.shape[-1],
            state=len(game.start),
            actions=(game.actions,) * game.agents,
            limit=game.limit,
            reward="individual",
            early_truncation=False,
        )

    def reset(self, key):
        index = jax.random.choice(key, len(self.game.start), p=jnp.asarray(self.game.start))
        state = PlayState(index, jnp.int32(0))
        return state, self.observe(state)

    def step(self, key, state, action):
        game = self.game
        key_noise, key_next, key_end = jax.random.split(key, 3)
        joint = (action * game.actions ** np.arange(game.agents)[::-1]).sum()
        noise = jnp.asarray(game.deviation, jnp.float32)[state.index] * jax.random.normal(key_noise)
        reward = jnp.asarray(game.reward, jnp.float32)[state.index, joint] + noise
        row = jnp.asarray(game.transition, jnp.float32)[state.index, joint]
        after = PlayState(jax.random.choice(key_next, len(row), p=row), state.time + 1)
        ends = jnp.asarray(game.ends, jnp.float32)[state.index, joint]
        terminated = jax.random.uniform(key_end) < ends
        seen = self.observe(after)
        over = (after.time >= game.limit) & ~terminated
        return after, TimeStep(seen, reward, terminated, over, seen)

    def observe(self, state):
        game = self.game
        return Observation(
            jnp.asarray(game.obs, jnp.float32)[state.index],
            jax.nn.one_hot(state.index, len(game.start)),
            jnp.ones((game.agents, game.actions), bool),
        )

    def render(self, state):
        raise NotImplementedError


# --- Games --------------------------------------------------------------------------------------


def of_matrix(env: MatrixGame) -> Game:
    """The tables of a matrix game."""
    payoff = env.table()
    agents = payoff.ndim
    reward = np.repeat(payoff.reshape(1, -1, 1), agents, -1)
    return Game(
        start=np.ones(1),
        reward=reward,
        deviation=np.zeros(1),
        transition=np.ones((1, reward.shape[1], 1)),
        ends=np.full(reward.shape[:2], float(env.limit == 1)),
        obs=np.ones((1, agents, 1)),
        actions=payoff.shape[0],
        limit=env.limit,
    )


def of_congestion(env: Congestion) -> Game:
    """The tables of a congestion game: the states are all levels and all arrangements of homes."""
    homes = sorted(set(itertools.permutations(np.arange(env.agents) % env.resources)))
    levels = list(itertools.product(range(3), repeat=env.resources))
    states = list(itertools.product(levels, homes))
    stay = np.array(
        [
            [np.prod(np.where(np.equal(a, b), 1 - env.change, 0) + env.change / 3) for b in levels]
            for a in levels
        ]
    )
    count = len(homes)
    transition = np.kron(stay, np.full((count, count), 1 / count))
    joint = np.array(list(itertools.product(range(env.resources), repeat=env.agents)))
    nobody = jnp.full(env.resources, -1)
    each = [
        CongestionState(jnp.array(level), jnp.array(home), nobody, jnp.array(level), jnp.int32(0))
        for level, home in states
    ]
    mean = jax.jit(jax.vmap(env.expected_reward, in_axes=(None, 0)))
    reward = np.array([mean(state, jnp.asarray(joint)) for state in each])
    return Game(
        start=np.full(len(states), 1 / len(states)),
        reward=np.repeat(reward[..., None], env.agents, -1),
        deviation=np.array([env.deviation(state) for state in each]),
        transition=np.repeat(transition[:, None], len(joint), 1),
        ends=np.zeros(reward.shape),
        obs=np.array([env.observe(state).obs for state in each]),
        actions=env.resources,
        limit=env.limit,
    )


def random_game(seed: int, *, states=3, agents=2, actions=3, limit=4, ends=0.15) -> Game:
    """A Markov game with each agent's own rewards, noise and random terminations."""
    generator = np.random.default_rng(seed)
    joint = actions**agents
    return Game(
        start=generator.dirichlet(np.ones(states)),
        reward=generator.normal(size=(states, joint, agents)),
        deviation=generator.uniform(0.2, 0.8, size=states),
        transition=generator.dirichlet(np.full(states, 0.3), size=(states, joint)),
        ends=generator.uniform(0, 2 * ends, size=(states, joint)),
        obs=np.repeat(np.eye(states)[:, None], agents, 1),
        actions=actions,
        limit=limit,
    )


# --- Exact parts --------------------------------------------------------------------------------


def exact(
    game: Game,
    policy: np.ndarray,
    value: np.ndarray,
    *,
    gamma: float,
    lam: float,
    length: int | None,
) -> dict[str, float]:
    """The means that `perla.variance.diagnosis.means` estimates, of rollouts of `length` steps,
    which divide episodes (none: of whole episodes).

    `policy` is `[state, agent, action]`, `value` `[state, agent]`.
    """
    found = [
        _Agent(game, policy, value[:, agent], agent, gamma).means(lam, length)
        for agent in range(game.agents)
    ]
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


class _Agent:
    def __init__(self, game, policy, value, agent, gamma):
        self.game, self.value, self.gamma, self.agent = game, value, gamma, agent
        self.own = policy[:, agent]
        self.of_own = np.eye(game.actions)[game.joint[:, agent]]  # [joint, action]
        each = [policy[:, m][:, game.joint[:, m]] for m in range(game.agents)]
        self.others = np.prod([p for m, p in enumerate(each) if m != agent], axis=0)
        self.all = self.others * each[agent]
        others = np.delete(game.joint, agent, axis=1)
        rows = (others * game.actions ** np.arange(game.agents - 1)[::-1]).sum(-1)
        self.of_others = np.eye(game.actions ** (game.agents - 1))[rows]  # [joint, others]
        self.stays = (1 - game.ends)[..., None] * game.transition  # [state, joint, state]

    def given_own(self, x):
        """E[x | s, aᵢ], `[state, action]`."""
        return (self.others * x) @ self.of_own

    def average(self, x):
        """E[x | s] over the own action, `[state]`."""
        return (self.own * x).sum(-1)

    def steps(self, lam, first, last):
        """The quantities at the steps `first` to `last` − 1, of returns that end before `last`."""
        game, gamma = self.game, self.gamma
        zero = np.zeros(len(game.start))
        mean = whole = own = others = environment = zero
        own_later = others_later = environment_later = zero
        found = []
        for t in reversed(range(first, last)):
            end = t + 1 == min(last, game.limit)
            target = self.value if end else (1 - lam) * self.value + lam * mean
            decay = 0.0 if end else (gamma * lam) ** 2
            q = game.reward[..., self.agent] + gamma * self.stays @ target
            outcome = game.deviation[:, None] ** 2 + gamma**2 * (
                self.stays @ target**2 - (self.stays @ target) ** 2
            )
            after = [
                decay * (self.all * (self.stays @ (now + later))).sum(-1)
                for now, later in (
                    (own, own_later),
                    (others, others_later),
                    (environment, environment_later),
                )
            ]
            within = outcome + decay * (self.stays @ whole)
            q_own = self.given_own(q)
            of_others = self.given_own(q**2) - q_own**2
            mean = self.average(q_own)
            own = self.average(q_own**2) - mean**2
            others = self.average(of_others)
            environment = (self.all * outcome).sum(-1)
            given_own = of_others + self.given_own(within)
            whole = own + self.average(given_own)
            own_later, others_later, environment_later = after
            found.append(
                {
                    "q": q, "q_own": q_own, "mean": mean, "within": within, "given_own": given_own,
                    "others": others, "others_later": others_later, "own_later": own_later,
                    "environment": environment + environment_later,
                }
            )  # fmt: skip
        return found[::-1]

    def means(self, lam, length):
        game = self.game
        each = length or game.limit
        undisturbed = self.steps(1.0, 0, game.limit)
        # Probabilities of the states at each step of an episode that still goes on.
        seen = [game.start]
        for _ in range(game.limit - 1):
            seen.append(np.einsum("s,sj,sjz->z", seen[-1], self.all, self.stays))
        sums, total = {}, 0.0
        for first in range(0, game.limit, each):
            last = first + each
            for t, step in enumerate(self.steps(lam, first, last), first):
                terms = self.terms(step, undisturbed[t])
                total += seen[t].sum()
                for name, term in terms.items():
                    sums[name] = sums.get(name, 0.0) + (seen[t] * term).sum()
        return {name: value / total for name, value in sums.items()}

    def terms(self, step, undisturbed):
        """The terms of the means at each state."""
        value, own = self.value, self.own
        q, q_own, mean = step["q"], step["q_own"], step["mean"]
        # ‖1[a] − π‖²
        w = 1 - 2 * own + (own**2).sum(-1, keepdims=True)
        joint_w = w @ self.of_own.T
        counterfactual = ((self.all * q) @ self.of_others) / np.maximum(
            self.all @ self.of_others, 1e-300
        )
        baseline = q - counterfactual @ self.of_others.T
        within = (self.all * joint_w * step["within"]).sum(-1)
        advantage = q_own - mean[:, None]
        averaged = self.average(w * advantage**2)
        gradient = own * (q_own - value[:, None])
        gradient = gradient - own * gradient.sum(-1, keepdims=True)
        signal = (gradient**2).sum(-1)
        given_own = self.average(w * step["given_own"])
        squares = {
            "critic": given_own + self.average(w * (q_own - value[:, None]) ** 2),
            "state": given_own + averaged,
            "baseline": within + (self.all * joint_w * baseline**2).sum(-1),
            "marginal": within + averaged,
            "counterfactual": (self.all * joint_w * baseline**2).sum(-1),
            "averaged": averaged,
        }
        true = undisturbed["q_own"] - undisturbed["mean"][:, None]
        bias = q_own - value[:, None] - true
        return {
            **{name: step[name] for name in ("others", "others_later", "own_later", "environment")},
            "critic": self.average(bias**2),
            "whole": self.average(step["given_own"]),
            "error": (undisturbed["mean"] - value) ** 2,
            "signal": signal,
            **{f"noise_{name}": square - signal for name, square in squares.items()},
        }
