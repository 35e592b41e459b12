"""Every preset is somebody's published settings."""

from __future__ import annotations

from typing import Any, NamedTuple

from perla.methods.estimators import Sampled
from perla.methods.parts import Adam, Hard, Huber, RMSProp, Soft
from perla.methods.ppo import GAE, NStep
from perla.methods.values import Network

Settings = dict[str, Any]


class Preset(NamedTuple):
    """Settings, and what some methods have different."""

    about: str
    settings: Settings | None
    """For actor-critic methods; none: it is not for them."""
    decomposition: Settings | None = None
    """For value decomposition; none: it is not for it."""
    local_critic: Settings = {}
    """For methods whose critic sees an agent's own observation."""
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

PRESETS: dict[str, Preset] = {
    "default": Preset(
        "perla's own choice; docs/learning.md and docs/value-decomposition.md argue for it", {}, {}
    ),
    "epymarl": Preset(
        "EPyMARL's defaults of its IPPO and MAPPO, and of its VDN and QMIX",
        _EPYMARL | RECURRENT | {"normalise_rewards": True},
        _PYMARL
        | {
            "normalise_rewards": True,
            "optimiser": Adam(),
            "actor": "mlp",
            "layers": 2,
            "last_action": False,
        },
    ),
    "pymarl": Preset("PyMARL's defaults of its VDN and QMIX", None, _PYMARL),
    "epymarl-lbf": Preset(
        "the settings that EPyMARL's benchmark tuned for foraging (Papoudakis et al., 2021)",
        _EPYMARL,
        local_critic={"target": Hard(every=200)},
    ),
    "paper-lbf": Preset(
        "the paper's settings for foraging (its Table 4) on EPyMARL's learner",
        _EPYMARL | {"hidden": 256, "lr": 5e-4, "returns": NStep(n=10)},
        embedded={
            "fit": "marginal",
            "interaction": Network(joins="first"),
            "estimator": Sampled(k=100),
        },
    ),
    "mava": Preset(
        "Mava's defaults of its feed-forward IPPO and MAPPO",
        DENSE
        | {
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
        },
    ),
    "on-policy": Preset(
        "on-policy's defaults, MAPPO's own code (Yu et al., 2022)",
        DENSE
        | {
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
        },
    ),
}
"""What a preset's name stands for."""
