"""Quantities of the paper's theorems, measured on random games with known values.

A game has a few states, agents and actions, common rewards, and random softmax policies, so that

    Q(s, a)      the return after joint action a in state s          (by solving for it)
    Q̃ᵢ(s, aᵢ)    its average over a₋ᵢ ~ π₋ᵢ                           (paper, Eq. 1)
    Q̂ᵢ(s, aᵢ)    its average over K draws of a₋ᵢ                      (paper, Eq. 2)

are known: the first two exactly, the third from the code that training uses.
"""

from __future__ import annotations

from functools import partial
from string import ascii_lowercase
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.distributions import Categorical
from perla.marginal.estimators import create_fixed_estimator
from perla.marginal.joint_actions import average
from perla.methods.estimators import Exact, Sampled
from perla.types import Array, Float, Int, PRNGKeyArray


class Game(NamedTuple):
    """A common-payoff stochastic game and the policies of its agents."""

    reward: Float[np.ndarray, "state *joint"]
    """Rewards by state and joint action, with one axis for the actions of each agent."""
    transition: Float[np.ndarray, "state *joint state"]
    policy: Float[np.ndarray, "state agent action"]
    """Action probabilities: softmax policies with a parameter for each state, agent and action."""
    gamma: float

    @property
    def agents(self) -> int:
        """The number of agents, N."""
        return self.policy.shape[1]

    def average(self, q: np.ndarray, agent: int | None = None) -> np.ndarray:
        """Average over a, or over a₋ᵢ of `agent`: `[state, *joint, …]` → `[state, (action,) …]`."""
        joint = ascii_lowercase[1 : 1 + self.agents]
        others = [m for m in range(self.agents) if m != agent]
        inputs = ",".join(["a" + joint + "...", *("a" + joint[m] for m in others)])
        kept = "" if agent is None else joint[agent]
        return np.einsum(f"{inputs}->a{kept}...", q, *(self.policy[:, m] for m in others))

    @property
    def values(self) -> Float[np.ndarray, "state *joint"]:
        """Q of the policies: r + γ P v, where v = r̄ + γ P̄ v."""
        reward, transition = self.average(self.reward), self.average(self.transition)
        v = np.linalg.solve(np.eye(len(reward)) - self.gamma * transition, reward)
        return self.reward + self.gamma * self.transition @ v


def random_game(
    seed: int, *, states: int = 4, agents: int = 3, actions: int = 3, gamma: float = 0.8
) -> Game:
    """Sample a game: normal rewards, peaked Dirichlet transitions, policies far from uniform."""
    generator = np.random.default_rng(seed)
    joint = (states, *(actions,) * agents)
    logits = generator.normal(size=(states, agents, actions))
    policy = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return Game(
        reward=generator.normal(size=joint),
        transition=generator.dirichlet(np.full(states, 0.3), size=joint),
        policy=policy,
        gamma=gamma,
    )


def marginalised(
    policy: Float[np.ndarray | Array, "state agent action"],
    q: Float[np.ndarray | Array, "state *joint"],
    estimator: Sampled | Exact,
    states: Int[Array, "*batch"],
    own: Int[Array, "*batch agent"],
    key: PRNGKeyArray,
) -> Float[Array, "*batch agent"]:
    """Estimate Q̂ᵢ(s, aᵢ) of every agent at `states`, for the agents' own actions `own`, where all
    act by the probabilities `policy`."""
    table = jnp.asarray(q, float)

    def f(joint: Int[Array, "*batch agent"]) -> Float[Array, "*batch agent 1"]:
        each = []
        for agent in range(policy.shape[1]):
            seen = joint.at[..., agent].set(own[..., agent])
            each.append(table[(states, *jnp.moveaxis(seen, -1, 0))])
        return jnp.stack(each, -1)[..., None]

    at_states = Categorical(jnp.log(jnp.asarray(policy, float))[states])
    fixed = create_fixed_estimator(estimator, policy.shape[1], policy.shape[2])
    draws = fixed.draw(at_states, key)
    return average(f, draws)[..., 0]


# --- Theorem 1 ----------------------------------------------------------------------------------


def predicted_variance(game: Game, q: np.ndarray, k: int, agent: int = 0) -> float:
    """Var Q̂ᵢ = 1/K Var Q(s, a) + (K − 1)/K Var Q̃ᵢ(s, aᵢ), states uniform     (paper, Thm 1)"""

    def variance(values: np.ndarray, weights: np.ndarray) -> float:
        mean = (weights * values).sum()
        return float((weights * (values - mean) ** 2).sum())

    joint = game.policy[:, 0] / len(game.policy)
    for m in range(1, game.agents):
        joint = joint[..., None] * game.policy[:, m].reshape(len(joint), *(1,) * m, -1)
    own = game.policy[:, agent] / len(game.policy)
    return variance(q, joint) / k + (k - 1) / k * variance(game.average(q, agent), own)


def sampled_values(
    game: Game, q: np.ndarray, k: int, draws: int, seed: int, *, agent: int = 0, chunk: int = 4096
) -> Float[np.ndarray, " draw"]:
    """Sample Q̂ᵢ, with new states, own actions and other agents' actions for each draw."""

    @jax.jit
    def one(key):
        key_state, key_own, key_others = jax.random.split(key, 3)
        states = jax.random.randint(key_state, (chunk,), 0, len(game.policy))
        policy = Categorical(jnp.log(jnp.asarray(game.policy, float))[states])
        own = policy.sample(key_own)
        estimate = marginalised(game.policy, q, Sampled(num_samples=k), states, own, key_others)
        return estimate[:, agent]

    keys = jax.random.split(jax.random.key(seed), -(-draws // chunk))
    return np.asarray(jax.lax.map(one, keys), float).reshape(-1)[:draws]


# --- Theorems 3 to 5 ----------------------------------------------------------------------------


class Gradients(NamedTuple):
    """Policy-gradient estimates of one agent, one per trajectory: `[trajectory, parameter]`."""

    centralised: np.ndarray
    """g^C = Σₜ γᵗ Q(sₜ, aₜ) ∇ log πᵢ(aᵢₜ | sₜ)                                (paper, Eq. 3)"""
    decentralised: np.ndarray
    """g^D, with Q̃ᵢ(sₜ, aᵢₜ) instead of Q                                       (paper, Eq. 4)"""
    perla: dict[int, np.ndarray]
    """g^P, with Q̂ᵢ(sₜ, aᵢₜ) instead of Q, by K."""


def gradients(
    game: Game,
    q: np.ndarray,
    ks: tuple[int, ...],
    *,
    trajectories: int,
    length: int,
    seed: int,
    agent: int = 0,
) -> Gradients:
    """Compute all estimators from the same trajectories of `length` steps, from uniform states."""
    marginal = jnp.asarray(game.average(q, agent), float)
    table, transition = jnp.asarray(q, float), jnp.asarray(game.transition, float)
    log_policy = jnp.log(jnp.asarray(game.policy, float))
    states, _, actions = game.policy.shape

    def step(carry, t_and_key):
        now, total = carry
        t, key = t_and_key
        key_own, key_next, *keys = jax.random.split(key, 2 + len(ks))
        policy = Categorical(log_policy[now])
        joint = policy.sample(key_own)
        index = (now, *jnp.moveaxis(joint, -1, 0))
        values = [table[index], marginal[now, joint[:, agent]]]
        for k, key_k in zip(ks, keys, strict=True):
            estimate = marginalised(game.policy, q, Sampled(num_samples=k), now, joint, key_k)
            values.append(estimate[:, agent])
        # ∇ log π of a softmax table: 1[s] (1[a] − π(s))
        score = jax.nn.one_hot(joint[:, agent], actions) - policy.probs[:, agent]
        where = jax.nn.one_hot(now, states)
        direction = where[:, :, None] * score[:, None, :]
        gain = game.gamma**t * jnp.stack(values)
        total = total + gain[:, :, None, None] * direction[None]
        following = Categorical(jnp.log(transition[index])).sample(key_next)
        return (following, total), None

    @jax.jit
    def run(key):
        key_start, key_steps = jax.random.split(key)
        start = jax.random.randint(key_start, (trajectories,), 0, states)
        total = jnp.zeros((2 + len(ks), trajectories, states, actions))
        steps = jnp.arange(length), jax.random.split(key_steps, length)
        (_, total), _ = jax.lax.scan(step, (start, total), steps)
        return total.reshape(2 + len(ks), trajectories, -1)

    central, decentral, *perla = np.asarray(run(jax.random.key(seed)), float)
    return Gradients(central, decentral, dict(zip(ks, perla, strict=True)))


def total_variance(gradients: np.ndarray) -> float:
    """Return E ‖g − E g‖², the sum of the variances of all parameters."""
    return float(gradients.var(axis=0, ddof=1).sum())


def bound(game: Game, q: np.ndarray, k: int, agent: int = 0) -> float:
    """Return B² C² / (K (1 − γ²)), B = sup ‖∇ log πᵢ‖, C = sup |Q|      (paper, Thm 4 and 5)"""
    own = game.policy[:, agent]
    scores = np.eye(own.shape[-1]) - own[:, None, :]
    b = np.linalg.norm(scores, axis=-1).max()
    c = np.abs(q).max()
    return float(b**2 * c**2 / (k * (1 - game.gamma**2)))


# --- The error of the estimate ------------------------------------------------------------------


def error(
    game: Game, q: np.ndarray, estimator: Sampled | Exact, repeats: int, seed: int, agent: int = 0
) -> float:
    """Return the root mean square of Q̂ᵢ − Q̃ᵢ over all states and own actions."""
    states, _, actions = game.policy.shape
    where, own = (jnp.asarray(x.reshape(-1)) for x in np.indices((states, actions)))
    own = jnp.broadcast_to(own[:, None], (*own.shape, game.agents))

    one = partial(marginalised, game.policy, q, estimator, where, own)
    keys = jax.random.split(jax.random.key(seed), repeats)
    found = np.asarray(jax.jit(partial(jax.lax.map, one))(keys), float)[..., agent]
    return float(np.sqrt(((found - game.average(q, agent).reshape(-1)) ** 2).mean()))
