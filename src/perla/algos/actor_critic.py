"""The networks of an actor-critic learner, and checks of its settings."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from perla.algos.values import create_value
from perla.envs.protocol import Spec
from perla.errors import UserError
from perla.methods.parts import check_agents
from perla.methods.ppo import CONTINUOUS, PPO
from perla.nets.actors import Actor
from perla.nets.body import Body
from perla.nets.critics import AnyCritic, Critic, Multilinear
from perla.nets.layers import SMALL
from perla.types import PRNGKeyArray


def create_actor(config: PPO, spec: Spec, key: PRNGKeyArray) -> Actor:
    """The initial actor."""
    body = Body.create(
        key, agents=spec.agents, features=spec.obs, outputs=spec.max_actions,
        core=config.actor_network, hidden_size=config.hidden_size, num_layers=config.num_layers,
        gain=SMALL, init=config.init, norm=config.layer_norm,
        ids=config.agent_ids, parameter_groups=config.actors(spec.agents), picture=spec.image,
    )  # fmt: skip
    if not spec.continuous:
        return Actor(body)
    log_deviation = jnp.full((body.nets, spec.max_actions), math.log(config.init_std), jnp.float32)
    return Actor(body, log_deviation, config.tanh_squash)


def create_critic(config: PPO, spec: Spec, key: PRNGKeyArray) -> AnyCritic:
    """The initial critic, of the shape that `config.value` needs."""
    shape = create_value(config.value, spec, layer_norm=config.layer_norm).critic
    key, key_effects = jax.random.split(key) if shape.rank else (key, key)
    local = shape.sees == "local"
    features, picture = (spec.obs, spec.image) if local else (spec.state, spec.state_image)
    body = Body.create(
        key, agents=spec.agents, features=features, picture=picture,
        extra_inputs=spec.agents * shape.actions, action_fusion=shape.fusion,
        outputs=shape.outputs * (1 + shape.rank),
        core=config.critic_network, hidden_size=config.hidden_size,
        num_layers=config.critic_num_layers, gain=1.0, init=config.init, norm=config.layer_norm,
        ids=config.agent_ids, parameter_groups=config.critics(spec.agents),
    )  # fmt: skip
    critic = Critic(body, shape.sees, shape.actions)
    if shape.rank == 0:
        return critic
    inputs = spec.max_actions * (2 if spec.continuous else 1)
    return Multilinear.create(key_effects, critic, inputs, shape.rank)


def check(config: PPO, spec: Spec) -> None:
    """Raise `UserError` for settings that do not fit the environment; `create_value` checks those
    of the value."""
    check_agents(config.parameter_groups, spec.agents, spec.id)
    if spec.continuous:
        return
    for name in CONTINUOUS:
        value = getattr(config, name)
        if value != getattr(PPO(), name):
            raise UserError(
                f"{name} = {value}: belongs to continuous actions, and those of {spec.id} are "
                "discrete; leave it out"
            )
