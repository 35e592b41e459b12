"""The value-decomposition learner: Q-learning with the mixer and the weighting as arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from perla.algos.alive import mask_dead_agents
from perla.algos.descent import apply_gradients, create_optimiser, residual, update_target
from perla.algos.normalise import mean
from perla.algos.offpolicy import (
    ReplayState,
    create_utilities,
    linear_decay,
    one_step_targets,
    unroll_utilities,
)
from perla.algos.protocol import Trajectory
from perla.algos.replay import Sequences
from perla.algos.values import chosen
from perla.config import tag
from perla.distributions import action_mask
from perla.envs.protocol import Observation, Spec
from perla.errors import UserError
from perla.methods.parts import check_agents
from perla.methods.td import (
    TD,
    IQLMixer,
    QMIXMixer,
    QPLEXMixer,
    QTRANMixer,
    Uniform,
    VDNMixer,
    Weighted,
)
from perla.nets import mixers
from perla.nets.actors import AgentOutputs, GreedyActor, Utilities, mask_values
from perla.nets.messages import Messages
from perla.nets.mixers import Mixer, MixerInput, MixerStep
from perla.nets.terms import LossTerm
from perla.types import Array, Bool, Float, Int, Metrics, PRNGKeyArray

CENTRAL_WIDTH = 256
"""Width of the central mixer's hidden layers (Rashid et al., 2020)."""


class Factored(eqx.Module):
    """Q(s, a) = mixer(s, Q₁(τ₁, a₁), …, Q_N(τ_N, a_N))."""

    utilities: Utilities
    mixer: Mixer
    acts: bool = eqx.field(static=True)
    """True if these utilities are the behaviour's: replayed hidden states are then theirs."""

    def unroll(self, steps: Sequences, key: PRNGKeyArray | None) -> AgentOutputs:
        """The agents' outputs at all timesteps, after communication, which is noisy if there is a
        `key`; the utilities of dead agents are zero."""
        hidden_state = steps.hidden_state[0]
        if not self.acts:
            hidden_state = self.utilities.reset_recurrent(hidden_state)
        outputs = unroll_utilities(self.utilities, steps, hidden_state)
        outputs = self.utilities.communicate(outputs, key)
        return mask_dead_utilities(outputs, steps.observation)

    def mixer_input(
        self, outputs: AgentOutputs, action: Int[Array, "*batch agent"], observation: Observation
    ) -> MixerInput:
        """The mixer's input at joint actions."""
        best = mask_values(outputs.values, observation.avail).max(-1)
        utilities = chosen(outputs.values, action)
        return MixerInput(utilities, best, action, observation.state, outputs.hidden)

    def joint(
        self, outputs: AgentOutputs, action: Int[Array, "*batch agent"], observation: Observation
    ) -> Float[Array, "*batch value"]:
        """The values of joint actions."""
        return self.mixer(self.mixer_input(outputs, action, observation))


def mask_dead_utilities(outputs: AgentOutputs, observation: Observation) -> AgentOutputs:
    """The agents' outputs, with utilities of zero for dead agents."""
    alive = observation.alive
    if alive is None:
        return outputs
    return outputs._replace(values=jnp.where(alive[..., None], outputs.values, 0.0))


class Networks(eqx.Module):
    """The networks that are trained."""

    values: Factored
    central: Factored | None
    """The unrestricted Q̂ of WQMIX, with its own utilities."""

    @property
    def bootstrap(self) -> Factored:
        """The values from which targets bootstrap."""
        return self.values if self.central is None else self.central

    def losses(
        self,
        batch: Sequences,
        target: Float[Array, "time sequence value"],
        loss_of: Callable[[Array], Array],
    ) -> dict[str, LossTerm]:
        """The loss of the central value, if there is one: of its errors against the `target` of
        every step (Rashid et al., 2020)."""
        if self.central is None:
            return {}
        outputs = batch.at_steps(self.central.unroll(batch, None))
        error = self.central.joint(outputs, batch.action, batch.now) - target
        return {"central_loss": LossTerm(1.0, loss_of(error))}


class Learner(eqx.Module):
    """The state of the learner."""

    networks: Networks
    target: Factored
    optimiser: optax.OptState
    replay_state: ReplayState
    epsilon: Float[Array, ""]
    updates: Int[Array, ""]
    """Gradient steps so far."""

    @property
    def actor(self) -> GreedyActor:
        """The policies."""
        return GreedyActor(self.networks.values.utilities, self.epsilon)


def create_messages(config: TD, spec: Spec, key: PRNGKeyArray) -> Messages | None:
    """Newly initialised messages, or none without communication."""
    settings = config.communication
    if settings is None:
        return None
    return Messages.create(
        key, agents=spec.agents, features=config.hidden_size, actions=spec.max_actions,
        latent=settings.latent_dim, attention=settings.attention_dim,
        hidden_size=settings.message_hidden, floor=settings.latent_var_floor,
        prune=settings.prune, init=config.init,
        latent_coef=settings.latent_coef, attention_coef=settings.attention_coef,
    )  # fmt: skip


def create_mixer(config: TD, spec: Spec, key: PRNGKeyArray) -> Mixer:
    """A newly initialised mixer."""
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
        case QPLEXMixer(num_kernels=kernels, kernel_layers=layers, kernel_hidden=hidden_size):
            return mixers.QPLEXMixer.create(
                key, agents=spec.agents, state=spec.state, actions=spec.max_actions,
                kernels=kernels, layers=layers, hidden_size=hidden_size, init=config.init,
            )  # fmt: skip
        case QTRANMixer() as settings:
            return mixers.QTRANMixer.create(
                key, features=config.hidden_size, actions=spec.max_actions, state=spec.state,
                hidden_size=settings.joint_hidden, init=config.init, condition=settings.condition,
                opt_coef=settings.opt_coef, nopt_coef=settings.nopt_coef,
            )  # fmt: skip
        case _:
            return config.mixer.create(config, spec, key)


def create_networks(config: TD, spec: Spec, key: PRNGKeyArray) -> Networks:
    """Newly initialised utilities and mixer, with a central value if the weighting needs one."""
    key_utilities, key_mixer, key_central, key_full, key_messages = jax.random.split(key, 5)
    messages = create_messages(config, spec, key_messages)
    values = Factored(
        create_utilities(config, spec, key_utilities, messages=messages),
        create_mixer(config, spec, key_mixer),
        acts=True,
    )
    if isinstance(config.weighting, Uniform):
        return Networks(values, None)
    mixer = mixers.CentralMixer.create(
        key_full, agents=spec.agents, state=spec.state, hidden_size=CENTRAL_WIDTH, init=config.init
    )
    utilities = create_utilities(config, spec, key_central)
    return Networks(values, Factored(utilities, mixer, acts=False))


class Algorithm:
    """Q-learning in one environment: `init` creates a learner, `update` stores a trajectory and
    trains on batches from the replay buffer.

    Raises `UserError` for settings that do not fit the environment.
    """

    def __init__(self, config: TD, spec: Spec) -> None:
        check_agents(config.parameter_groups, spec.agents, spec.id)
        if spec.continuous:
            raise UserError(
                f"mixer {tag(config.mixer)!r}: needs discrete actions, and those of {spec.id} are "
                "continuous; use maddpg, mappo or perla-mappo"
            )
        if config.communication is not None and spec.agents == 1:
            raise UserError(f"{spec.id}: has one agent, and messages need two or more")
        self.config, self.spec = config, spec
        self.per_agent = config.mixer.per_agent
        self.uses_state = config.mixer.uses_state or isinstance(config.weighting, Weighted)
        self.optimiser = create_optimiser(config.optimizer, config.lr, config.max_grad_norm)

    def init(self, key: PRNGKeyArray) -> Learner:
        """A newly initialised learner."""
        networks = create_networks(self.config, self.spec, key)
        return Learner(
            networks=networks,
            target=networks.bootstrap,
            optimiser=self.optimiser.init(networks),
            replay_state=ReplayState.create(
                self.config,
                self.spec,
                hidden_state_size=networks.values.utilities.hidden_state_size,
                values=self.spec.agents if self.per_agent else 1,
                state=self.uses_state,
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
        """Store the trajectory, then make gradient steps on replayed batches."""
        learner = self.store(learner, trajectory)
        keys_replay, keys_loss = jax.random.split(key, (2, self.config.updates_per_rollout))
        batches = learner.replay_state.sample(self.config, keys_replay)
        learner, metrics = jax.lax.scan(self.gradient_step, learner, (batches, keys_loss))
        return learner, jax.tree.map(jnp.mean, metrics) | {"epsilon": learner.epsilon}

    def store(self, learner: Learner, trajectory: Trajectory) -> Learner:
        """The learner after adding the trajectory to the replay buffer and decaying ε."""
        reward = self.value_reward(trajectory.reward)
        replay_state = learner.replay_state.add(trajectory, reward, self.spec)
        return replace(learner, replay_state=replay_state, epsilon=self.epsilon(replay_state.steps))

    def gradient_step(
        self, learner: Learner, inputs: tuple[Sequences, PRNGKeyArray]
    ) -> tuple[Learner, Metrics]:
        """One gradient step on a replayed batch, and the update of the target network."""
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
        """The sum of the loss terms: the weighted temporal-difference error, and the terms of the
        central value, the mixer and the messages."""
        values, action, now = networks.values, batch.action, batch.now
        loss_of, average = partial(residual, self.config.loss), partial(self.average, batch=batch)
        key_now, key_target = jax.random.split(key)
        outputs = values.unroll(batch, key_now)
        greedy = mask_values(outputs.values, batch.observation.avail).argmax(-1)
        y, greedy_value = self.targets(greedy, target, batch, key_target)

        outputs, greedy, greedy_value = batch.at_steps((outputs, greedy, greedy_value))
        step = MixerStep(
            taken=values.mixer_input(outputs, action, now),
            greedy=values.mixer_input(outputs, greedy, now),
            utilities=outputs.values,
            action_mask=action_mask(now.avail, now.alive),
        )
        predicted = values.mixer(step.taken)
        error = predicted - y
        is_greedy = (action == greedy).all(-1, keepdims=True)
        weight = weights(self.config.weighting, error, is_greedy, y, greedy_value)
        metrics = {"td_error": jnp.sqrt(average(error**2)), "value": average(predicted)}
        terms = {"loss": LossTerm(1.0, weight * loss_of(error))}
        if isinstance(self.config.weighting, Weighted):
            metrics["weight"] = average(weight)
        terms |= networks.losses(batch, y, loss_of)
        terms |= values.mixer.losses(step, loss_of)
        terms |= values.utilities.losses(outputs, greedy)
        losses = {name: term.coef * average(term.values) for name, term in terms.items()}
        return sum(losses.values(), jnp.float32(0.0)), metrics | losses

    def average(self, x: Float[Array, "time sequence value"], batch: Sequences) -> Float[Array, ""]:
        """The mean of `x` over the steps that count."""
        return mean(x, batch.loss_mask if x.shape[-1] == self.spec.agents else batch.valid)

    def targets(
        self,
        greedy: Int[Array, "timestep sequence agent"],
        target: Factored,
        batch: Sequences,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "time sequence value"], Float[Array, "timestep sequence value"]]:
        """The target y of every step, and the target network's value Q⁻(s, ā) at every timestep: of
        the `greedy` actions of the online network, or, without double Q-learning, of its own."""
        outputs = target.unroll(batch, key)
        if not self.config.double_q:
            greedy = mask_values(outputs.values, batch.observation.avail).argmax(-1)
        values = jax.lax.stop_gradient(target.joint(outputs, greedy, batch.observation))
        if self.per_agent:
            common = self.spec.reward == "common"
            values = mask_dead_agents(values, batch.observation, common=common)
        return one_step_targets(batch, values, self.config.gamma), values

    def value_reward(self, reward: Float[Array, "*batch agent"]) -> Float[Array, "*batch value"]:
        """The reward of each value: the agents' own rewards, or their mean for a joint value."""
        return reward if self.per_agent else reward.mean(-1, keepdims=True)

    def epsilon(self, steps: Int[Array, ""]) -> Float[Array, ""]:
        """The share ε of random actions after this many environment steps."""
        config = self.config
        return linear_decay(
            config.epsilon_start, config.epsilon_end, config.epsilon_decay_steps, steps
        )


def weights(
    weighting: Uniform | Weighted,
    error: Float[Array, "*batch value"],
    is_greedy: Bool[Array, "*batch 1"],
    target: Float[Array, "*batch value"],
    greedy_value: Float[Array, "*batch value"],
) -> Float[Array, "*batch value"]:
    """The weights of errors Q_tot − y: 1 or α (Rashid et al., 2020, Eqs. 7 and 8).

    `is_greedy`: the joint action is the greedy one ā; `greedy_value`: Q̂⁻(s, ā).
    """
    match weighting:
        case Uniform():
            return jnp.ones_like(error)
        case Weighted(full="optimistic"):  # Q_tot < y
            full = error < 0
        case Weighted():  # central: a = ā, or y > Q̂⁻(s, ā)
            full = is_greedy | (target > greedy_value)
    return jnp.where(full, 1.0, weighting.alpha)
