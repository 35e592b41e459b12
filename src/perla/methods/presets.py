"""Presets: the published settings of other libraries and of the paper."""

from __future__ import annotations

from typing import Any, NamedTuple

from perla.config import Config
from perla.errors import page
from perla.methods.estimators import Sampled
from perla.methods.maddpg import DDPG
from perla.methods.parts import Adam, Hard, Huber, RMSProp, Soft
from perla.methods.ppo import GAE, PPO, NStep
from perla.methods.td import TD
from perla.methods.values import Network

Settings = dict[str, Any]


class Preset(NamedTuple):
    """Settings by learner, and exceptions for some methods."""

    about: str
    settings: dict[type[Config], Settings]
    """The settings of each learner that the preset is for; the default preset is for all."""
    local_critic: Settings = {}
    """Exceptions for methods with local critics."""
    counterfactual: Settings = {}
    """Exceptions for COMA."""
    embedded: Settings = {}
    """Settings of `Embedded`, for the PERLA methods."""


DENSE: Settings = {
    "actor_network": "mlp",
    "critic_network": "mlp",
    "num_layers": 2,
    "critic_num_layers": 2,
}
RECURRENT: Settings = {
    "actor_network": "gru",
    "critic_network": "mlp",
    "num_layers": 1,
    "critic_num_layers": 2,
}

_EPYMARL: Settings = {
    "num_envs": 10,
    "rollout_length": None,
    "update_epochs": 4,
    "num_minibatches": 1,
    "gamma": 0.99,
    "returns": NStep(n_step=5),
    "target": Soft(target_update_tau=0.01),
    "clip_eps": 0.2,
    "ent_coef": 0.001,
    "ent_coef_final": None,
    "normalize_advantages": False,
    "refresh_advantages": True,
    "normalize_rewards": False,
    "lr": 3e-4,
    "max_grad_norm": 10.0,
    "hidden_size": 128,
    "init": "torch",
} | DENSE

_PYMARL: Settings = {
    "num_envs": 1,
    "rollout_length": None,
    "buffer_size": 5000,
    "batch_size": 32,
    "updates_per_rollout": 1,
    "gamma": 0.99,
    "double_q": True,
    "target": Hard(target_update_interval=200),
    "epsilon_start": 1.0,
    "epsilon_end": 0.05,
    "epsilon_decay_steps": 50_000,
    "normalize_rewards": False,
    "optimizer": RMSProp(decay=0.99, rms_eps=1e-5),
    "lr": 5e-4,
    "max_grad_norm": 10.0,
    "actor_network": "gru",
    "hidden_size": 64,
    "num_layers": 1,
    "init": "torch",
    "agent_ids": True,
    "last_action": True,
}

_PAPER_EMBEDDED: Settings = {
    "regress": "marginal",
    "critic_model": Network(action_fusion="first"),
    "estimator": Sampled(num_samples=100),
}
"""Of the paper's embedded critics on every suite."""
_ON_POLICY: Settings = {
    "num_envs": 32,
    "rollout_length": 200,
    "update_epochs": 15,
    "num_minibatches": 1,
    "returns": GAE(gae_lambda=0.95),
    "loss": Huber(huber_delta=10.0),
    "value_clip_eps": 0.2,
    "normalize_values": True,
    "ent_coef": 0.01,
    "ent_coef_final": None,
    "normalize_advantages": True,
    "normalize_rewards": False,
    "optimizer": Adam(eps=1e-5),
    "lr": 5e-4,
    "max_grad_norm": 10.0,
    "hidden_size": 64,
    "layer_norm": True,
} | DENSE

_MAVA: Settings = {
    "num_envs": 32,
    "rollout_length": 128,
    "update_epochs": 4,
    "num_minibatches": 2,
    "returns": GAE(gae_lambda=0.95),
    "value_clip_eps": 0.2,
    "value_coef": 0.25,  # its coefficient 0.5 times the half in its squared error
    "ent_coef": 0.01,
    "ent_coef_final": None,
    "normalize_advantages": True,
    "normalize_rewards": False,
    "optimizer": Adam(eps=1e-5),
    "lr": 2.5e-4,
    "max_grad_norm": 0.5,
    "hidden_size": 128,
} | DENSE

# JaxMARL ea4733c, baselines/MAPPO, for SMAX; values are normalized here.
_SKIRMISH: Settings = {
    "num_envs": 128,
    "rollout_length": 128,
    "update_epochs": 4,
    "num_minibatches": 4,
    "returns": GAE(gae_lambda=0.95),
    "value_clip_eps": 0.2,
    "value_coef": 0.5,
    "normalize_values": True,
    "normalize_rewards": False,
    "ent_coef": 0.0,
    "ent_coef_final": None,
    "normalize_advantages": True,
    "optimizer": Adam(eps=1e-5),
    "lr": 2e-3,
    "anneal_lr": True,
    "max_grad_norm": 0.25,
    "hidden_size": 128,
}

_EPYMARL_MADDPG: Settings = {
    "num_envs": 1,
    "rollout_length": None,
    "buffer_size": 50_000,
    "batch_size": 32,
    "updates_per_rollout": 1,
    "gamma": 0.99,
    "target": Hard(target_update_interval=200),
    "logit_penalty": 0.001,
    "normalize_rewards": True,
    "lr": 5e-4,
    "max_grad_norm": 10.0,
    "actor_network": "gru",
    "hidden_size": 128,
    "num_layers": 1,
    "critic_num_layers": 2,
    "init": "torch",
    "agent_ids": True,
    "last_action": False,
}

PRESETS: dict[str, Preset] = {
    "default": Preset(
        f"perla's own defaults; {page('learning.md')} gives reasons",
        {},
        counterfactual={
            "rollout_length": 8,
            "returns": GAE(gae_lambda=0.8),
            "critic_epochs": 8,
            "refresh_advantages": True,
        },
    ),
    "epymarl": Preset(
        "EPyMARL's defaults for IPPO, MAPPO, COMA, VDN, QMIX and MADDPG",
        {
            PPO: _EPYMARL | RECURRENT | {"normalize_rewards": True},
            TD: _PYMARL
            | {
                "normalize_rewards": True,
                "optimizer": Adam(),
                "actor_network": "mlp",
                "num_layers": 2,
                "last_action": False,
            },
            DDPG: _EPYMARL_MADDPG,
        },
        counterfactual={
            "returns": NStep(n_step=10),
            "target": Hard(target_update_interval=200),
            "hidden_size": 64,
        },
    ),
    "pymarl": Preset("PyMARL's defaults for VDN and QMIX", {TD: _PYMARL}),
    "epymarl-lbf": Preset(
        "EPyMARL's tuned settings for foraging (Papoudakis et al., 2021)",
        {
            PPO: _EPYMARL,
            DDPG: _EPYMARL_MADDPG
            | {
                "target": Soft(target_update_tau=0.01),
                "lr": 3e-4,
                "actor_network": "mlp",
                "hidden_size": 64,
                "num_layers": 2,
            },
        },
        local_critic={"target": Hard(target_update_interval=200)},
    ),
    "paper-lbf": Preset(
        "the paper's settings for foraging (Table 4), with EPyMARL's learner",
        {PPO: _EPYMARL | {"hidden_size": 256, "lr": 5e-4, "returns": NStep(n_step=10)}},
        embedded=_PAPER_EMBEDDED,
    ),
    # Observations are normalized by a layer, and returns by their running mean and deviation.
    "paper-mujoco": Preset(
        "the paper's settings for multi-agent MuJoCo, with on-policy's learner",
        {
            PPO: _ON_POLICY
            | {
                "num_envs": 4,
                "rollout_length": 1000,
                "update_epochs": 5,
                "num_minibatches": 40,
                "ent_coef": 0.001,
                "optimizer": RMSProp(decay=0.99, momentum=0.9, rms_eps=1e-5),
                "lr": 5e-4,
                "critic_lr": 5e-3,
                "max_grad_norm": 0.5,
                "hidden_size": 128,
            }
        },
        embedded=_PAPER_EMBEDDED,
    ),
    # Limits of episodes are truncations here, and terminations there.
    "paper-smac": Preset(
        "the paper's settings for SMAC, with on-policy's learner",
        {
            PPO: _ON_POLICY
            | {
                "num_envs": 32,
                "rollout_length": 100,
                "update_epochs": 10,
                "num_minibatches": 1,
                "ent_coef": 0.01,
                "lr": 1e-3,
                "critic_lr": 5e-4,
                "max_grad_norm": 10.0,
                "hidden_size": 64,
                "num_layers": 1,
                "critic_num_layers": 1,
            }
        },
        embedded=_PAPER_EMBEDDED,
    ),
    "skirmish": Preset(
        "for skirmish: JaxMARL's settings for SMAX with dense layers and values normalized",
        {PPO: _SKIRMISH | DENSE},
    ),
    "skirmish-gru": Preset(
        "for skirmish: the same with a recurrent actor",
        {PPO: _SKIRMISH | RECURRENT},
    ),
    # Returns are normalized by their running mean and deviation; CleanRL normalizes rewards.
    "cleanrl": Preset(
        "CleanRL's PPO for continuous actions: 2,048 steps per update, here from 16 environments",
        {
            PPO: {
                "num_envs": 16,
                "rollout_length": 128,
                "update_epochs": 10,
                "num_minibatches": 32,
                "returns": GAE(gae_lambda=0.95),
                "value_clip_eps": 0.2,
                "normalize_values": True,
                "ent_coef": 0.0,
                "ent_coef_final": None,
                "normalize_advantages": True,
                "normalize_rewards": False,
                "optimizer": Adam(eps=1e-5),
                "lr": 3e-4,
                "anneal_lr": True,
                "max_grad_norm": 0.5,
                "hidden_size": 64,
            }
            | DENSE
        },
    ),
    "mava": Preset(
        "Mava's defaults for feed-forward IPPO and MAPPO",
        {PPO: _MAVA},
    ),
    "on-policy": Preset(
        "on-policy's defaults: the authors' MAPPO (Yu et al., 2022)", {PPO: _ON_POLICY}
    ),
    "harl": Preset(
        "HARL's defaults: the authors' HAPPO (Zhong et al., 2024)",
        {PPO: _ON_POLICY | {"num_envs": 20, "update_epochs": 5, "hidden_size": 128}},
    ),
}
"""The presets by name."""
