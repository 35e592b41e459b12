"""The networks of an actor-critic learner: made for a world, unless settings and world differ."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from perla.algos.values import advantage_is_critics, outputs
from perla.config import tag
from perla.envs.protocol import Spec
from perla.errors import UserError
from perla.methods.aggregators import Mean
from perla.methods.estimators import Analytic, Sampled, resolve
from perla.methods.parts import check_agents
from perla.methods.ppo import CONTINUOUS, PPO
from perla.methods.values import Centralised, Counterfactual, Embedded, Multilinear, Network
from perla.nets import critics
from perla.nets.actors import Actor
from perla.nets.body import Body
from perla.nets.critics import AnyCritic, Critic
from perla.nets.layers import SMALL
from perla.types import PRNGKeyArray


def create_actor(config: PPO, spec: Spec, key: PRNGKeyArray) -> Actor:
    """A fresh actor for a world."""
    body = Body.create(
        key, agents=spec.agents, features=spec.obs, outputs=spec.max_actions,
        core=config.actor_network, hidden_size=config.hidden_size, num_layers=config.num_layers,
        gain=SMALL, init=config.init, norm=config.layer_norm,
        ids=config.agent_ids, parameter_groups=config.actors(spec.agents),
    )  # fmt: skip
    if not spec.continuous:
        return Actor(body)
    log_deviation = jnp.full((body.nets, spec.max_actions), math.log(config.init_std), jnp.float32)
    return Actor(body, log_deviation, config.tanh_squash)


def create_critic(config: PPO, spec: Spec, key: PRNGKeyArray) -> AnyCritic:
    """A fresh critic of the kind that `config.value` asks for."""
    value = config.value
    sees: Literal["local", "global"] = "local"
    joins: Literal["first", "last"] = "last"
    actions = rank = 0
    match value:
        case Centralised():
            sees = "global"
        case Counterfactual():
            sees, joins, actions = "global", "first", spec.max_actions
        case Embedded(critic_input=sees, critic_model=Network(action_fusion=joins)):
            actions = spec.max_actions
        case Embedded(critic_input=sees, critic_model=Multilinear(rank=rank)):
            pass
    key, key_effects = jax.random.split(key) if rank else (key, key)
    body = Body.create(
        key, agents=spec.agents, features=spec.obs if sees == "local" else spec.state,
        extra_inputs=spec.agents * actions, action_fusion=joins,
        outputs=outputs(value, spec.max_actions) * (1 + rank),
        core=config.critic_network, hidden_size=config.hidden_size,
        num_layers=config.critic_num_layers, gain=1.0, init=config.init, norm=config.layer_norm,
        ids=config.agent_ids, parameter_groups=config.critics(spec.agents),
    )  # fmt: skip
    critic = Critic(body, sees, actions)
    if rank == 0:
        return critic
    inputs = spec.max_actions * (2 if spec.continuous else 1)
    return critics.Multilinear.create(key_effects, critic, inputs, rank)


def check(config: PPO, spec: Spec) -> None:
    """Raise `UserError` for settings that do not fit the world or each other."""
    check_agents(config.parameter_groups, spec.agents, spec.id)
    check_actions(config, spec)
    if isinstance(config.value, Embedded):
        check_average(config.value, spec)


def check_actions(config: PPO, spec: Spec) -> None:
    """Raise `UserError` for settings that the world's kind of actions rules out or ignores."""
    if not spec.continuous:
        for name in CONTINUOUS:
            value = getattr(config, name)
            if value != getattr(PPO(), name):
                raise UserError(
                    f"{name} = {value}: belongs to continuous actions, and those of {spec.id} are "
                    "discrete; leave it out"
                )
    elif isinstance(config.value, Counterfactual):
        raise UserError(
            f"value 'counterfactual': has an output for each action of an agent, and those of "
            f"{spec.id} are continuous; use mappo or perla-mappo"
        )
    elif advantage_is_critics(config.value):
        raise UserError(
            f"critic_form 'action-value': has an output for each action of an agent, and those of "
            f"{spec.id} are continuous; use critic_form 'state-value'"
        )


def check_average(value: Embedded, spec: Spec) -> None:
    """Raise `UserError` for an estimator that cannot be or says what has no effect, and an
    aggregator that learning would undo or that needs joint actions where none are drawn."""
    closed_form = isinstance(value.critic_model, Multilinear)
    actions = None if spec.continuous else spec.max_actions
    estimator = resolve(value.estimator, spec.agents, actions, closed_form=closed_form)
    if isinstance(estimator, Sampled) and estimator.gradient_samples and value.regress == "joint":
        raise UserError(
            f"gradient_samples = {estimator.gradient_samples} with regress 'joint': no gradient flows "
            "through the average; use regress 'marginal'"
        )
    if isinstance(value.aggregator, Mean):
        return
    name = f"aggregator {tag(value.aggregator)!r}"
    if isinstance(estimator, Analytic):
        raise UserError(
            f"{name}: a closed form has only the mean; use estimator 'sampled' or 'exact'"
        )
    if value.regress != "joint":
        raise UserError(
            f"{name} with regress 'marginal': regressed on returns, the aggregate itself would become "
            "their average; use regress 'joint'"
        )
