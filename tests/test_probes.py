"""On worlds whose values and best actions are known, every variant of the learner finds them."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probes
from marks import cases, slow
from perla.algos import ppo
from perla.loops.anakin import Trainer
from perla.methods.estimators import Exact, Sampled
from perla.methods.ppo import GAE, PPO, Hard, Huber, NStep, RMSProp, Soft
from perla.methods.recipes import RECIPES, make
from perla.methods.values import Multilinear

SMALL = probes.PLAIN | {
    "num_envs": 16,
    "rollout_length": 6,
    "hidden_size": 16,
    "lr": 1e-2,
    "init": "torch",
    "gamma": probes.GAMMA,
}
UPDATES = 150


@dataclass(frozen=True)
class Trained:
    """A learner that has trained on a probe world."""

    world: probes.Probe
    config: PPO
    learner: ppo.Learner

    def look(self, time: int, signs: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """The critic's values `[agent]` and the actors' probabilities `[agent, action]`.

        Memory is blank at an episode's first step; recurrent learners are asked there only.
        """
        observation = self.world.see(self.world.moment(time, signs))
        actor, critic = self.learner.actor, self.learner.critic
        policy, _ = actor(observation, actor.body.initial_state(()), jnp.array(True))
        context, _ = critic.context(
            jax.tree.map(lambda x: x[None], observation),
            critic.body.initial_state(()),
            jnp.array([True]),
        )
        algorithm = ppo.Algorithm(self.config, self.world.spec)
        values = algorithm.value.estimate(
            critic, context[0], policy, jax.random.key(0), action=policy.mode()
        ).value
        return algorithm.scale(self.learner).restore(values), policy.probs


def train(world: probes.Probe, algo: str, updates: int = UPDATES, **settings) -> Trained:
    config = make(algo, **SMALL | settings)
    steps = updates * config.num_envs * config.length(world.spec.limit)
    trainer = Trainer(world, config, seeds=(0,), steps=steps, eval_episodes=1)
    population, _ = trainer.advance(trainer.init(), steps)
    learner = jax.tree.map(lambda x: jnp.asarray(x[0]), trainer.export(population).learner)
    return Trained(world, config, learner)


def check(trained: Trained, tolerance: float = 0.1) -> None:
    """Values and policies are the known ones at every moment of the world."""
    world = trained.world
    for (time, signs), known in world.known.items():
        values, probs = trained.look(time, signs)
        np.testing.assert_allclose(
            values, known, atol=tolerance, err_msg=f"value at time {time}, signs {signs}"
        )
        if world.best is not None and time == world.length - 1:
            best = probs[jnp.arange(world.agents), jnp.array(world.best(signs))]
            assert (best > 0.9).all(), f"signs {signs}: the best actions' probabilities are {best}"
        assert (probs[:, list(world.forbidden)] == 0).all()


# Each row turns other knobs, so that together they turn all: (world, method, settings).
CASES = {
    "one step, always 1": (probes.CONSTANT, "ippo", {}),
    "value follows sight": (
        probes.SIGHT,
        "mappo",
        {"loss": Huber(huber_delta=0.5), "update_epochs": 2},
    ),
    "delayed reward, n-step": (
        probes.DELAY,
        "ippo",
        {"returns": NStep(n_step=3), "target": Soft(target_update_tau=0.1)},
    ),
    "choice, A2C": (probes.CHOICE, "ia2c", {"optimizer": RMSProp(), "ent_coef": 0.0}),
    "match, minibatches": (
        probes.MATCH,
        "perla-ippo",
        {"num_minibatches": 2, "value_clip_eps": 0.5, "max_grad_norm": 0.5},
    ),
    "endless, cut at three steps": (
        probes.ENDLESS,
        "ippo",
        {"normalize_values": True, "returns": GAE(gae_lambda=0.5)},
    ),
    "finite, over at three steps": (
        probes.FINITE,
        "mappo",
        {"target": Hard(target_update_interval=5), "returns": NStep(n_step=1)},
    ),
    "forbidden temptation": (
        probes.TEMPTATION,
        "maa2c",
        {"init": "orthogonal", "ent_coef": 0.0, "updates": 400},
    ),
    "together": (probes.TOGETHER, "perla-ippo", {"value_coef": 0.5, "anneal_lr": True}),
    "together, marginal fit": (
        probes.TOGETHER,
        "perla-mappo",
        {
            "value": RECIPES["perla-mappo"].settings["value"].replace(regress="marginal"),
            "layer_norm": True,
        },
    ),
    "together, GRU": (
        probes.TOGETHER,
        "mappo",
        {"actor_network": "gru", "critic_network": "gru", "bptt_length": 3},
    ),
    "matrix, sampled A2C": (
        probes.MATRIX,
        "perla-maa2c",
        {
            "value": RECIPES["perla-maa2c"]
            .settings["value"]
            .replace(estimator=Sampled(num_samples=4))
        },
    ),
    "matrix, action-value form": (
        probes.MATRIX,
        "perla-ippo",
        {
            "value": RECIPES["perla-ippo"].settings["value"].replace(critic_form="action-value"),
            "parameter_sharing": "separate",
            "normalize_advantages": False,
        },
    ),
    "matrix, action-value form, marginal fit": (
        probes.MATRIX,
        "perla-mappo",
        {
            "value": RECIPES["perla-mappo"]
            .settings["value"]
            .replace(critic_form="action-value", regress="marginal", estimator=Exact()),
            "refresh_advantages": True,
        },
    ),
    "matrix, multilinear": (
        probes.MATRIX,
        "perla-mappo",
        {
            "value": RECIPES["perla-mappo"]
            .settings["value"]
            .replace(critic_form="action-value", regress="joint", critic_model=Multilinear(rank=4))
        },
    ),
    "together, multilinear": (
        probes.TOGETHER,
        "perla-ippo",
        {
            "value": RECIPES["perla-ippo"]
            .settings["value"]
            .replace(critic_model=Multilinear(rank=4)),
            "parameter_sharing": "separate",
            "updates": 300,
        },
    ),
    "matrix, COMA": (probes.MATRIX, "coma", {"normalize_advantages": False}),
    "patience, COMA": (
        probes.PATIENCE,
        "coma",
        {"returns": GAE(gae_lambda=0.8), "target": Soft(target_update_tau=0.1)},
    ),
    "endless, COMA": (
        probes.ENDLESS,
        "coma",
        {"returns": NStep(n_step=2), "normalize_values": True},
    ),
    "together, HAPPO": (
        probes.TOGETHER,
        "happo",
        {"actor_network": "gru", "bptt_length": 3, "refresh_advantages": True},
    ),
    "matrix, PERLA-HAPPO": (
        probes.MATRIX,
        "perla-happo",
        {"num_minibatches": 2, "parameter_sharing": "separate"},
    ),
    "patience": (probes.PATIENCE, "perla-mappo", {"loss": Huber(huber_delta=1.0)}),
    "patience, whole episodes": (
        probes.PATIENCE,
        "ippo",
        {"rollout_length": None, "num_envs": 32, "agent_ids": False},
    ),
    "mortal": (probes.MORTAL, "ippo", {"parameter_sharing": "separate"}),
    "kinds, in groups": (
        probes.KINDS,
        "perla-ippo",
        {"parameter_groups": (0, 1, 0), "agent_ids": False},
    ),
}


SLOW = (
    "one step, always 1",
    "matrix, COMA",
    "choice, A2C",
    "finite, over at three steps",
    "forbidden temptation",
    "together, marginal fit",
    "matrix, action-value form",
    "matrix, multilinear",
    "together, multilinear",
    "patience, COMA",
    "endless, COMA",
    "matrix, PERLA-HAPPO",
    "patience",
    "kinds, in groups",
    "delayed reward, n-step",
    "match, minibatches",
    "together, GRU",
    "together, HAPPO",
    "matrix, sampled A2C",
    "matrix, action-value form, marginal fit",
    "patience, whole episodes",
    "mortal",
)


@pytest.mark.parametrize("case", cases(CASES, *SLOW))
def test_learns_the_known_values_and_actions(case):
    world, algo, settings = case
    check(train(world, algo, **settings))


def test_every_probe_world_is_learnt_from():
    used = {world.name for world, *_ in CASES.values()}
    worlds = probes.ONE_AGENT + probes.TWO_AGENTS + probes.THREE_AGENTS
    assert used == {world.name for world in worlds}


def test_every_method_is_tried():
    assert {algo for _, algo, _ in CASES.values()} >= {"ippo", "mappo", "perla-ippo", "perla-mappo"}


@pytest.mark.parametrize(
    ("actor", "worth"), [("gru", probes.GAMMA), *slow(("mlp", probes.GAMMA / 2))]
)
def test_what_was_seen_a_step_before_only_a_memory_knows(actor, worth):
    trained = train(probes.RECALL, "ippo", actor_network=actor, critic_network=actor, lr=5e-3)
    for signs in (probes.UP, probes.DOWN):
        values, _ = trained.look(0, signs)
        np.testing.assert_allclose(values, worth, atol=0.1, err_msg=f"signs {signs}")
