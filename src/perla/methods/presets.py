"""Every preset is somebody's published settings."""

from __future__ import annotations

from typing import Any, NamedTuple

from perla.config import Config
from perla.methods.estimators import Sampled
from perla.methods.maddpg import DDPG
from perla.methods.parts import Adam, Hard, Huber, RMSProp, Soft
from perla.methods.ppo import GAE, PPO, NStep
from perla.methods.td import TD
from perla.methods.values import Network

Settings = dict[str, Any]


class Preset(NamedTuple):
    """Settings, and what some methods have different."""

    about: str
    settings: dict[type[Config], Settings]
    """For the methods of each learner that it is for."""
    local_critic: Settings = {}
    """For methods whose critic sees an agent's own observation."""
    counterfactual: Settings = {}
    """For COMA."""
    embedded: Settings = {}
    """For the marginalised critics of the PERLA methods: settings of `Embedded`."""


DENSE: Settings = {"actor": "mlp", "critic": "mlp", "layers": 2, "critic_layers": 2}
RECURRENT: Settings = {"actor": "gru", "critic": "mlp", "layers": 1, "critic_layers": 2}

_EPYMARL: Settings = {
    "copies": 10,
    "horizon": None,
    "epochs": 4,
    "minibatches": 1,
    "gamma": 0.99,
    "returns": NStep(n=5),
    "target": Soft(tau=0.01),
    "clip": 0.2,
    "entropy": 0.001,
    "entropy_final": None,
    "normalise_advantages": False,
    "refresh_advantages": True,
    "normalise_rewards": False,
    "lr": 3e-4,
    "max_grad_norm": 10.0,
    "hidden": 128,
    "init": "torch",
} | DENSE

_PYMARL: Settings = {
    "copies": 1,
    "horizon": None,
    "buffer": 5000,
    "batch": 32,
    "updates": 1,
    "gamma": 0.99,
    "double_q": True,
    "target": Hard(every=200),
    "epsilon": 1.0,
    "epsilon_final": 0.05,
    "epsilon_steps": 50_000,
    "normalise_rewards": False,
    "optimiser": RMSProp(decay=0.99, rms_eps=1e-5),
    "lr": 5e-4,
    "max_grad_norm": 10.0,
    "actor": "gru",
    "hidden": 64,
    "layers": 1,
    "init": "torch",
    "agent_ids": True,
    "last_action": True,
}

_ON_POLICY: Settings = {
    "copies": 32,
    "horizon": 200,
    "epochs": 15,
    "minibatches": 1,
    "returns": GAE(lam=0.95),
    "loss": Huber(delta=10.0),
    "value_clip": 0.2,
    "normalise_values": True,
    "entropy": 0.01,
    "entropy_final": None,
    "normalise_advantages": True,
    "normalise_rewards": False,
    "optimiser": Adam(eps=1e-5),
    "lr": 5e-4,
    "max_grad_norm": 10.0,
    "hidden": 64,
    "layer_norm": True,
} | DENSE

_MAVA: Settings = {
    "copies": 32,
    "horizon": 128,
    "epochs": 4,
    "minibatches": 2,
    "returns": GAE(lam=0.95),
    "value_clip": 0.2,
    "value_coef": 0.25,  # its coefficient 0.5 times the half in its squared error
    "entropy": 0.01,
    "entropy_final": None,
    "normalise_advantages": True,
    "normalise_rewards": False,
    "optimiser": Adam(eps=1e-5),
    "lr": 2.5e-4,
    "max_grad_norm": 0.5,
    "hidden": 128,
} | DENSE

_EPYMARL_MADDPG: Settings = {
    "copies": 1,
    "horizon": None,
    "buffer": 50_000,
    "batch": 32,
    "updates": 1,
    "gamma": 0.99,
    "target": Hard(every=200),
    "logit_penalty": 0.001,
    "normalise_rewards": True,
    "lr": 5e-4,
    "max_grad_norm": 10.0,
    "actor": "gru",
    "hidden": 128,
    "layers": 1,
    "critic_layers": 2,
    "init": "torch",
    "agent_ids": True,
    "last_action": False,
}

PRESETS: dict[str, Preset] = {
    "default": Preset(
        "perla's own choice; docs/learning.md, value-decomposition.md and maddpg.md argue for it",
        {PPO: {}, TD: {}, DDPG: {}},
        counterfactual={
            "horizon": 8,
            "returns": GAE(lam=0.8),
            "critic_epochs": 8,
            "refresh_advantages": True,
        },
    ),
    "epymarl": Preset(
        "EPyMARL's defaults of its IPPO, MAPPO and COMA, of its VDN and QMIX, and of its MADDPG",
        {
            PPO: _EPYMARL | RECURRENT | {"normalise_rewards": True},
            TD: _PYMARL
            | {
                "normalise_rewards": True,
                "optimiser": Adam(),
                "actor": "mlp",
                "layers": 2,
                "last_action": False,
            },
            DDPG: _EPYMARL_MADDPG,
        },
        counterfactual={"returns": NStep(n=10), "target": Hard(every=200), "hidden": 64},
    ),
    "pymarl": Preset("PyMARL's defaults of its VDN and QMIX", {TD: _PYMARL}),
    "epymarl-lbf": Preset(
        "the settings that EPyMARL's benchmark tuned for foraging (Papoudakis et al., 2021)",
        {
            PPO: _EPYMARL,
            DDPG: _EPYMARL_MADDPG
            | {"target": Soft(tau=0.01), "lr": 3e-4, "actor": "mlp", "hidden": 64, "layers": 2},
        },
        local_critic={"target": Hard(every=200)},
    ),
    "paper-lbf": Preset(
        "the paper's settings for foraging (its Table 4) on EPyMARL's learner",
        {PPO: _EPYMARL | {"hidden": 256, "lr": 5e-4, "returns": NStep(n=10)}},
        embedded={
            "fit": "marginal",
            "interaction": Network(joins="first"),
            "estimator": Sampled(k=100),
        },
    ),
    "paper-mujoco": Preset(
        "the paper's settings for multi-agent MuJoCo on on-policy's learner, which normalises "
        "observations by a layer and returns by their running mean and deviation",
        {
            PPO: _ON_POLICY
            | {
                "copies": 4,
                "horizon": 1000,
                "epochs": 5,
                "minibatches": 40,
                "entropy": 0.001,
                "optimiser": RMSProp(decay=0.99, momentum=0.9, rms_eps=1e-5),
                "lr": 5e-4,
                "critic_lr": 5e-3,
                "max_grad_norm": 0.5,
                "hidden": 128,
            }
        },
        embedded={
            "fit": "marginal",
            "interaction": Network(joins="first"),
            "estimator": Sampled(k=100),
        },
    ),
    "cleanrl": Preset(
        "CleanRL's settings of its PPO for continuous actions, its 2,048 steps an update from 16 "
        "copies; returns are normalised by their running mean and deviation, not rewards by theirs",
        {
            PPO: {
                "copies": 16,
                "horizon": 128,
                "epochs": 10,
                "minibatches": 32,
                "returns": GAE(lam=0.95),
                "value_clip": 0.2,
                "normalise_values": True,
                "entropy": 0.0,
                "entropy_final": None,
                "normalise_advantages": True,
                "normalise_rewards": False,
                "optimiser": Adam(eps=1e-5),
                "lr": 3e-4,
                "lr_decay": True,
                "max_grad_norm": 0.5,
                "hidden": 64,
            }
            | DENSE
        },
    ),
    "mava": Preset(
        "Mava's defaults of its feed-forward IPPO and MAPPO",
        {PPO: _MAVA},
    ),
    "on-policy": Preset(
        "on-policy's defaults, MAPPO's own code (Yu et al., 2022)", {PPO: _ON_POLICY}
    ),
    "harl": Preset(
        "HARL's defaults, HAPPO's own code (Zhong et al., 2024)",
        {PPO: _ON_POLICY | {"copies": 20, "epochs": 5, "hidden": 128}},
    ),
}
"""What a preset's name stands for."""
