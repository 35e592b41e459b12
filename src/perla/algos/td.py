"""The value-decomposition learner: one Q-learning whose mixers and weights are arguments."""

from __future__ import annotations

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from perla.algos.descent import create_optimiser, descend, follow, residual
from perla.algos.normalise import Running, mean
from perla.algos.protocol import Trajectory
from perla.algos.replay import Replay, Sequences, sequences
from perla.algos.values import chosen
from perla.envs.protocol import Observation, Spec
from perla.methods.td import TD, Alone, Duplex, Monotonic, Sum, Weighted
from perla.nets import mixers
from perla.nets.actors import GreedyActor, Utilities, possible
from perla.nets.body import Body
from perla.nets.mixers import AnyMixer
from perla.types import Array, Bool, Float, Int, Metrics, PRNGKeyArray

CENTRAL_WIDTH = 256
"""Width of the central mixer's hidden layers (Rashid et al., 2020)."""


class Factored(eqx.Module):
    """Q(s, a) = mixer(s, Q₁(τ₁, a₁), …, Q_N(τ_N, a_N))."""

    utilities: Utilities
    mixer: AnyMixer
    acts: bool = eqx.field(static=True)
    """Whether the memories that are replayed are those of its own utilities."""

    def look(self, steps: Sequences) -> Float[Array, "place sequence agent action"]:
        """Every agent's utilities at all places."""
        time, obs, sources = len(steps.fresh), steps.observation.obs, steps.sources
        memory = steps.memory[0] if self.acts else self.utilities.forget(steps.memory[0])
        along, memories = self.utilities.unroll(obs[:time], steps.action, memory, steps.fresh)
        before = memories[sources, jnp.arange(sources.shape[1])[None]]
        beyond, _ = self.utilities(obs[time:], before, jnp.zeros(sources.shape, bool))
        return jnp.concatenate([along, beyond])

    def joint(
        self,
        utilities: Float[Array, "place sequence agent action"],
        action: Int[Array, "place sequence agent"],
        observation: Observation,
    ) -> Float[Array, "place sequence value"]:
        """The values of joint actions."""
        best = possible(utilities, observation.avail).max(-1)
        return self.mixer(chosen(utilities, action), best, action, observation.state)


class Networks(eqx.Module):
    """What is learnt."""

    values: Factored
    central: Factored | None
    """The unrestricted Q̂ of WQMIX, with utilities of its own."""

    @property
    def bootstrap(self) -> Factored:
        """What targets are the values of."""
        return self.values if self.central is None else self.central


class Learner(eqx.Module):
    """All that learning changes."""

    networks: Networks
    target: Factored
    optimiser: optax.OptState
    replay: Replay
    rewards: Running
    epsilon: Float[Array, ""]
    steps: Int[Array, ""]
    """Environment steps seen."""
    updates: Int[Array, ""]
    """Gradient steps made."""

    @property
    def actor(self) -> GreedyActor:
        """The policies."""
        return GreedyActor(self.networks.values.utilities, self.epsilon)


def create_utilities(config: TD, spec: Spec, key: PRNGKeyArray) -> Utilities:
    """Fresh utilities for a world."""
    recalls = spec.max_actions if config.last_action else 0
    body = Body.create(
        key, agents=spec.agents, features=spec.obs + recalls, outputs=spec.max_actions,
        core=config.actor, hidden=config.hidden, layers=config.layers,
        gain=1.0, init=config.init, norm=config.layer_norm,
        ids=config.agent_ids, separate=config.sharing == "separate",
    )  # fmt: skip
    return Utilities(body, recalls)


def create_mixer(config: TD, spec: Spec, key: PRNGKeyArray) -> AnyMixer:
    """A fresh mixer of the kind that `config.mixer` asks for."""
    match config.mixer:
        case Alone():
            return mixers.Alone()
        case Sum():
            return mixers.Sum()
        case Monotonic(embed=embed, hypernet=hypernet):
            return mixers.Monotonic.create(
                key, agents=spec.agents, state=spec.state,
                embed=embed, hypernet=hypernet, init=config.init,
            )  # fmt: skip
        case Duplex(kernels=kernels, kernel_layers=layers, kernel_hidden=hidden):
            return mixers.Duplex.create(
                key, agents=spec.agents, state=spec.state, actions=spec.max_actions,
                kernels=kernels, layers=layers, hidden=hidden, init=config.init,
            )  # fmt: skip


def create_networks(config: TD, spec: Spec, key: PRNGKeyArray) -> Networks:
    """Fresh utilities and mixer, and a central value where the weighting needs one."""
    key_utilities, key_mixer, key_central, key_full = jax.random.split(key, 4)
    values = Factored(
        create_utilities(config, spec, key_utilities),
        create_mixer(config, spec, key_mixer),
        acts=True,
    )
    if not isinstance(config.weighting, Weighted):
        return Networks(values, None)
    full = mixers.Central.create(
        key_full, agents=spec.agents, state=spec.state, hidden=CENTRAL_WIDTH, init=config.init
    )
    return Networks(values, Factored(create_utilities(config, spec, key_central), full, acts=False))


class Algorithm:
    """Q-learning on one world: `init` makes a learner, `update` remembers a trajectory and learns
    from batches of all that is remembered.

    Raises `UserError` for settings that do not fit the world.
    """

    def __init__(self, config: TD, spec: Spec) -> None:
        self.config, self.spec = config, spec
        self.alone = isinstance(config.mixer, Alone)
        blind = isinstance(config.mixer, Alone | Sum) and not isinstance(config.weighting, Weighted)
        self.sees_state = not blind
        self.optimiser = create_optimiser(config.optimiser, config.lr, config.max_grad_norm)

    def init(self, key: PRNGKeyArray) -> Learner:
        """A learner that has seen nothing."""
        networks = create_networks(self.config, self.spec, key)
        return Learner(
            networks=networks,
            target=networks.bootstrap,
            optimiser=self.optimiser.init(networks),
            replay=Replay.create(
                self.spec,
                self.config.buffer,
                self.config.length(self.spec.limit),
                memory=networks.values.utilities.memory,
                values=self.spec.agents if self.alone else 1,
                state=self.sees_state,
            ),
            rewards=Running.create(),
            epsilon=self.epsilon(jnp.int32(0)),
            steps=jnp.int32(0),
            updates=jnp.int32(0),
        )

    def update(
        self,
        learner: Learner,
        trajectory: Trajectory,
        key: PRNGKeyArray,
        progress: Float[Array, ""],
    ) -> tuple[Learner, Metrics]:
        """Remember the trajectory, then learn from what is replayed."""
        learner = self.remember(learner, trajectory)
        keys = jax.random.split(key, self.config.updates)
        learner, metrics = jax.lax.scan(self.improve, learner, keys)
        return learner, jax.tree.map(jnp.mean, metrics) | {"epsilon": learner.epsilon}

    def remember(self, learner: Learner, trajectory: Trajectory) -> Learner:
        """The trajectory takes the place of the oldest; exploration moves on."""
        rewards = self.earned(trajectory.reward)
        new = sequences(trajectory, rewards, self.spec, state=self.sees_state)
        steps = learner.steps + trajectory.valid.sum()
        return replace(
            learner,
            replay=learner.replay.add(new),
            rewards=learner.rewards.update(rewards, trajectory.valid),
            epsilon=self.epsilon(steps),
            steps=steps,
        )

    def improve(self, learner: Learner, key: PRNGKeyArray) -> tuple[Learner, Metrics]:
        """One gradient step on sequences drawn from the replay."""
        batch = learner.replay.sample(key, self.config.batch)
        if self.config.normalise_rewards:
            batch = batch._replace(reward=learner.rewards.standardise(batch.reward))
        gradient, metrics = jax.grad(self.loss, has_aux=True)(
            learner.networks, learner.target, batch
        )
        networks, optimiser = descend(self.optimiser, gradient, learner.optimiser, learner.networks)
        updates = learner.updates + 1
        target = follow(self.config.target, networks.bootstrap, learner.target, updates)
        learner = replace(
            learner, networks=networks, target=target, optimiser=optimiser, updates=updates
        )
        return learner, metrics | {"grad_norm": optax.tree.norm(gradient)}

    def loss(
        self, networks: Networks, target: Factored, batch: Sequences
    ) -> tuple[Float[Array, ""], Metrics]:
        """The weighted errors of Q_tot, and those of the central Q̂ if there is one."""
        config, values, central = self.config, networks.values, networks.central
        utilities = values.look(batch)
        y, greedy, best = self.targets(utilities, target, batch)

        time = len(y)
        now = jax.tree.map(lambda x: x[:time], batch.observation)
        predicted = values.joint(utilities[:time], batch.action, now)
        error = predicted - y
        weight = jnp.ones_like(error)
        if isinstance(config.weighting, Weighted):
            is_greedy = (batch.action == greedy[:time]).all(-1, keepdims=True)
            weight = weights(config.weighting, error, is_greedy, y, best[:time])
        loss = mean(weight * residual(config.loss, error), batch.valid)
        metrics = {
            "td_error": jnp.sqrt(mean(error**2, batch.valid)),
            "value": mean(predicted, batch.valid),
            "loss": loss,
        }
        if central is None:
            return loss, metrics
        full = central.joint(central.look(batch)[:time], batch.action, now)
        central_loss = mean(residual(config.loss, full - y), batch.valid)
        metrics |= {"central_loss": central_loss, "weight": mean(weight, batch.valid)}
        return loss + central_loss, metrics

    def targets(
        self,
        utilities: Float[Array, "place sequence agent action"],
        target: Factored,
        batch: Sequences,
    ) -> tuple[
        Float[Array, "time sequence value"],
        Int[Array, "place sequence agent"],
        Float[Array, "place sequence value"],
    ]:
        """y of every step; and of every place ā, the agents' own best actions by `utilities` or
        by the target's, and its value Q⁻(s, ā)."""
        theirs = target.look(batch)
        choosing = utilities if self.config.double_q else theirs
        greedy = possible(choosing, batch.observation.avail).argmax(-1)
        best = jax.lax.stop_gradient(target.joint(theirs, greedy, batch.observation))
        # y = r + γ (1 − d) Q⁻(s′, ā′)
        following = jnp.take_along_axis(best, batch.next_place[..., None], 0)
        following = jnp.where(batch.terminated[..., None], 0.0, following)
        return batch.reward + self.config.gamma * following, greedy, best

    def earned(self, reward: Float[Array, "*batch agent"]) -> Float[Array, "*batch value"]:
        """What each value predicts: an agent's own rewards, or their mean where Q_tot is one."""
        return reward if self.alone else reward.mean(-1, keepdims=True)

    def epsilon(self, steps: Int[Array, ""]) -> Float[Array, ""]:
        """The share of random actions after so many environment steps."""
        config = self.config
        left = jnp.clip(1.0 - steps / config.epsilon_steps, 0.0, 1.0)
        return config.epsilon_final + (config.epsilon - config.epsilon_final) * left


def weights(
    kind: Weighted,
    error: Float[Array, "*batch 1"],
    is_greedy: Bool[Array, "*batch 1"],
    target: Float[Array, "*batch 1"],
    best: Float[Array, "*batch 1"],
) -> Float[Array, "*batch 1"]:
    """1 for errors that count in full, α for the others: of Q_tot − y, at joint actions that are
    the greedy ones or not, whose own values are `best` (Rashid et al., 2020, Eqs. 7 and 8)."""
    match kind.full:
        case "optimistic":  # Q_tot < y
            full = error < 0
        case "central":  # a = ā, or y > Q̂⁻(s, ā)
            full = is_greedy | (target > best)
    return jnp.where(full, 1.0, kind.alpha)
