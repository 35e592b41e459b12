"""The value-decomposition learner: one Q-learning whose mixers and weights are arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from perla.algos.alive import mask_dead_agents
from perla.algos.descent import apply_gradients, create_optimiser, residual, update_target
from perla.algos.normalise import mean
from perla.algos.offpolicy import ReplayState, bootstrapped, create_utilities, look
from perla.algos.protocol import Trajectory
from perla.algos.replay import Sequences
from perla.algos.values import chosen
from perla.config import tag
from perla.distributions import IMPOSSIBLE, choosable
from perla.envs.protocol import Observation, Spec
from perla.errors import UserError
from perla.methods.parts import check_agents
from perla.methods.td import (
    TD,
    IQLMixer,
    MAICMessages,
    QMIXMixer,
    QPLEXMixer,
    QTRANMixer,
    VDNMixer,
    Weighted,
)
from perla.nets import mixers
from perla.nets.actors import GreedyActor, Utilities, Views, possible
from perla.nets.messages import Messages, Said
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

    def look(self, steps: Sequences, key: PRNGKeyArray | None) -> Views:
        """The agents' views at all places, after messages that are noisy if there is a `key`; the
        utilities of agents that no longer take part are zero."""
        hidden_state = (
            steps.hidden_state[0] if self.acts else self.utilities.forget(steps.hidden_state[0])
        )
        views = self.utilities.hear(look(self.utilities, steps, hidden_state), key)
        alive = steps.observation.alive
        if alive is None:
            return views
        return views._replace(values=jnp.where(alive[..., None], views.values, 0.0))

    def joint(
        self, views: Views, action: Int[Array, "*batch agent"], observation: Observation
    ) -> Float[Array, "*batch value"]:
        """The values of joint actions."""
        best = possible(views.values, observation.avail).max(-1)
        utility = chosen(views.values, action)
        return self.mixer(utility, best, action, observation.state, views.hidden)


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
    replay_state: ReplayState
    epsilon: Float[Array, ""]
    updates: Int[Array, ""]
    """Gradient steps made."""

    @property
    def actor(self) -> GreedyActor:
        """The policies."""
        return GreedyActor(self.networks.values.utilities, self.epsilon)


def create_messages(config: TD, spec: Spec, key: PRNGKeyArray) -> Messages | None:
    """What agents tell each other at first, if they do."""
    talk = config.communication
    if talk is None:
        return None
    return Messages.create(
        key, agents=spec.agents, known=config.hidden_size, actions=spec.max_actions,
        latent=talk.latent_dim, attention=talk.attention_dim, hidden=talk.message_hidden,
        floor=talk.latent_var_floor, prune=talk.prune, init=config.init,
    )  # fmt: skip


def create_mixer(config: TD, spec: Spec, key: PRNGKeyArray) -> AnyMixer:
    """A fresh mixer of the kind that `config.mixer` asks for."""
    match config.mixer:
        case IQLMixer():
            return mixers.IQLMixer()
        case VDNMixer():
            return mixers.VDNMixer()
        case QMIXMixer(mixing_embed_dim=embed, hypernet_embed=hypernet):
            return mixers.QMIXMixer.create(
                key, agents=spec.agents, state=spec.state,
                embed=embed, hypernet=hypernet, init=config.init,
            )  # fmt: skip
        case QPLEXMixer(num_kernels=kernels, kernel_layers=layers, kernel_hidden=hidden):
            return mixers.QPLEXMixer.create(
                key, agents=spec.agents, state=spec.state, actions=spec.max_actions,
                kernels=kernels, layers=layers, hidden=hidden, init=config.init,
            )  # fmt: skip
        case QTRANMixer(joint_hidden=hidden):
            return mixers.QTRANMixer.create(
                key, known=config.hidden_size, actions=spec.max_actions, state=spec.state,
                hidden=hidden, init=config.init,
            )  # fmt: skip


def create_networks(config: TD, spec: Spec, key: PRNGKeyArray) -> Networks:
    """Fresh utilities and mixer, and a central value where the weighting needs one."""
    key_utilities, key_mixer, key_central, key_full, key_messages = jax.random.split(key, 5)
    messages = create_messages(config, spec, key_messages)
    values = Factored(
        create_utilities(config, spec, key_utilities, messages=messages),
        create_mixer(config, spec, key_mixer),
        acts=True,
    )
    if not isinstance(config.weighting, Weighted):
        return Networks(values, None)
    full = mixers.Central.create(
        key_full, agents=spec.agents, state=spec.state, hidden=CENTRAL_WIDTH, init=config.init
    )
    utilities = create_utilities(config, spec, key_central)
    return Networks(values, Factored(utilities, full, acts=False))


class Algorithm:
    """Q-learning on one world: `init` makes a learner, `update` remembers a trajectory and learns
    from batches of all that is remembered.

    Raises `UserError` for settings that do not fit the world.
    """

    def __init__(self, config: TD, spec: Spec) -> None:
        check_agents(config.parameter_groups, spec.agents, spec.id)
        if spec.continuous:
            raise UserError(
                f"mixer {tag(config.mixer)!r}: takes the best of an agent's actions, and those of "
                f"{spec.id} are continuous; use maddpg, mappo or perla-mappo"
            )
        if config.communication is not None and spec.agents == 1:
            raise UserError(f"{spec.id}: has one agent, and messages need two or more")
        self.config, self.spec = config, spec
        self.alone = isinstance(config.mixer, IQLMixer)
        blind = isinstance(config.mixer, IQLMixer | VDNMixer) and not isinstance(
            config.weighting, Weighted
        )
        self.sees_state = not blind
        self.optimiser = create_optimiser(config.optimizer, config.lr, config.max_grad_norm)

    def init(self, key: PRNGKeyArray) -> Learner:
        """A learner that has seen nothing."""
        networks = create_networks(self.config, self.spec, key)
        return Learner(
            networks=networks,
            target=networks.bootstrap,
            optimiser=self.optimiser.init(networks),
            replay_state=ReplayState.create(
                self.config,
                self.spec,
                hidden_state=networks.values.utilities.hidden_state,
                values=self.spec.agents if self.alone else 1,
                state=self.sees_state,
            ),
            epsilon=self.epsilon(jnp.int32(0)),
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
        keys_replay, keys_loss = jax.random.split(key, (2, self.config.updates_per_rollout))
        batches = learner.replay_state.sample(self.config, keys_replay)
        learner, metrics = jax.lax.scan(self.improve, learner, (batches, keys_loss))
        return learner, jax.tree.map(jnp.mean, metrics) | {"epsilon": learner.epsilon}

    def remember(self, learner: Learner, trajectory: Trajectory) -> Learner:
        """The trajectory takes the place of the oldest; exploration moves on."""
        earned = self.earned(trajectory.reward)
        replay_state = learner.replay_state.add(trajectory, earned, self.spec)
        return replace(learner, replay_state=replay_state, epsilon=self.epsilon(replay_state.steps))

    def improve(
        self, learner: Learner, inputs: tuple[Sequences, PRNGKeyArray]
    ) -> tuple[Learner, Metrics]:
        """One gradient step on sequences drawn from the replay."""
        batch, key_loss = inputs
        gradient, metrics = jax.grad(self.loss, has_aux=True)(
            learner.networks, learner.target, batch, key_loss
        )
        networks, optimiser = apply_gradients(
            self.optimiser, gradient, learner.optimiser, learner.networks
        )
        updates = learner.updates + 1
        target = update_target(self.config.target, networks.bootstrap, learner.target, updates)
        learner = replace(
            learner, networks=networks, target=target, optimiser=optimiser, updates=updates
        )
        return learner, metrics | {"grad_norm": optax.tree.norm(gradient)}

    def loss(
        self, networks: Networks, target: Factored, batch: Sequences, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The weighted errors of the joint value, and what else is asked of the networks: of a
        central Q̂, of a sum that is held to the joint value, of messages."""
        config, values, central = self.config, networks.values, networks.central
        key_now, key_target = jax.random.split(key)
        views = values.look(batch, key_now)
        greedy = possible(views.values, batch.observation.avail).argmax(-1)
        y, best = self.targets(greedy, target, batch, key_target)

        def steps(places: Any) -> Any:
            return jax.tree.map(lambda x: x[: len(y)], places)

        def average(error: Float[Array, "time sequence value"]) -> Float[Array, ""]:
            return mean(
                error, batch.loss_mask if error.shape[-1] == self.spec.agents else batch.valid
            )

        views, greedy, best = steps((views, greedy, best))
        now, action = batch.now, batch.action
        predicted = values.joint(views, action, now)
        error = predicted - y
        weight = jnp.ones_like(error)
        if isinstance(config.weighting, Weighted):
            is_greedy = (action == greedy).all(-1, keepdims=True)
            weight = weights(config.weighting, error, is_greedy, y, best)
        metrics = {"td_error": jnp.sqrt(average(error**2)), "value": average(predicted)}
        terms = {"loss": average(weight * residual(config.loss, error))}
        if central is not None:
            full = central.joint(steps(central.look(batch, None)), action, now)
            terms["central_loss"] = average(residual(config.loss, full - y))
            metrics["weight"] = average(weight)
        match config.mixer, values.mixer:
            case QTRANMixer(opt_coef=opt, nopt_coef=nopt) as kind, mixers.QTRANMixer() as mixer:
                at_best, elsewhere = gaps(kind, mixer, views, action, greedy, now)
                terms["opt_loss"] = opt * average(residual(config.loss, at_best))
                terms["nopt_loss"] = nopt * average(residual(config.loss, elsewhere))
        match config.communication, values.utilities.messages, views.said:
            case MAICMessages() as talk, Messages() as messages, Said() as said:
                divergence = messages.divergence(views.hidden, said.models, greedy)
                terms["latent_loss"] = talk.latent_coef * average(divergence)
                entropy = messages.entropy(views.hidden, said.z)
                terms["attention_loss"] = talk.attention_coef * average(entropy)
        return sum(terms.values(), jnp.float32(0.0)), metrics | terms

    def targets(
        self,
        greedy: Int[Array, "place sequence agent"],
        target: Factored,
        batch: Sequences,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "time sequence value"], Float[Array, "place sequence value"]]:
        """y of every step; and of every place the value Q⁻(s, ā) of `greedy`, which are the agents'
        best actions by the networks that learn, or of those by the target's own utilities."""
        views = target.look(batch, key)
        if not self.config.double_q:
            greedy = possible(views.values, batch.observation.avail).argmax(-1)
        best = jax.lax.stop_gradient(target.joint(views, greedy, batch.observation))
        if self.alone:
            common = self.spec.reward == "common"
            best = mask_dead_agents(best, batch.observation, common=common)
        return bootstrapped(batch, best, self.config.gamma), best

    def earned(self, reward: Float[Array, "*batch agent"]) -> Float[Array, "*batch value"]:
        """What each value predicts: an agent's own rewards, or their mean where Q_tot is one."""
        return reward if self.alone else reward.mean(-1, keepdims=True)

    def epsilon(self, steps: Int[Array, ""]) -> Float[Array, ""]:
        """The share of random actions after so many environment steps."""
        config = self.config
        left = jnp.clip(1.0 - steps / config.epsilon_decay_steps, 0.0, 1.0)
        return config.epsilon_end + (config.epsilon_start - config.epsilon_end) * left


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


def gaps(
    kind: QTRANMixer,
    mixer: mixers.QTRANMixer,
    views: Views,
    action: Int[Array, "*batch agent"],
    greedy: Int[Array, "*batch agent"],
    observation: Observation,
) -> tuple[Float[Array, "*batch 1"], Float[Array, "*batch value"]]:
    """By how much a sum D(s, a) = Σᵢ Qᵢ + V(s) − Q(s, a) is off where it should be zero: at ā, and
    by the condition that holds it elsewhere (Son et al., 2019, Theorem 1 and QTRAN-alt)."""
    values, hidden = views.values, views.hidden
    at_best = mixer.gap(chosen(values, greedy), greedy, observation.state, hidden)
    match kind.condition:
        case "base":  # D(s, a) ≥ 0
            gap = mixer.gap(chosen(values, action), action, observation.state, hidden)
            return at_best, jnp.minimum(gap, 0.0)
        case "alt":  # minₐ′ D(s, a′ᵢ, a₋ᵢ) = 0 for every i
            every = mixer.gaps(values, chosen(values, action), action, observation.state, hidden)
            avail = choosable(observation.avail, observation.alive)
            return at_best, jnp.where(avail, every, -IMPOSSIBLE).min(-1)
