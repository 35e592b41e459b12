"""COMA: its baseline against enumeration, its targets against their recursion."""

from __future__ import annotations

import itertools
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probes
from perla.algos import ppo
from perla.distributions import Categorical
from perla.envs.protocol import Observation, Spec
from perla.envs.wrappers import AutoReset
from perla.errors import UserError
from perla.loops.rollout import begin, rollout
from perla.methods.ppo import GAE
from perla.methods.recipes import make
from perla.methods.settings import configure

KEY = jax.random.key(0)
SMALL = probes.PLAIN | {"num_envs": 16, "rollout_length": 7, "hidden_size": 8, "init": "torch"}
CUT = replace(probes.PATIENCE, end="truncated")


# --- The counterfactual baseline ----------------------------------------------------------------

SPEC = Spec("random", 3, 2, 5, (4, 4, 4), None, "common")
# The advantage is the critic's alone, so what is given as its target does not matter.
NO_TARGET = jnp.full((1, 6, SPEC.agents), jnp.nan)


@pytest.fixture(scope="module", params=["shared", "separate"])
def scene(request):
    """A learner, its critic's context at six states, policies of which some actions are
    forbidden, and what was done."""
    algorithm = ppo.Algorithm(make("coma", **SMALL, parameter_sharing=request.param), SPEC)
    learner = algorithm.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 4)
    agents = (1, 6, SPEC.agents)
    avail = jax.random.bernoulli(keys[0], 0.7, (*agents, 4)).at[..., 0].set(True)
    policy = Categorical.masked(2 * jax.random.normal(keys[1], (*agents, 4)), avail)
    state = jax.random.normal(keys[2], (1, 6, SPEC.state))
    observation = Observation(jnp.zeros((*agents, SPEC.obs)), state, avail)
    context, _ = learner.critic.context(observation, jnp.zeros((6, 3, 0)), jnp.zeros((1, 6), bool))
    return algorithm, learner, context, policy, policy.sample(keys[3])


def q(critic, context, joint, agent):
    """Qᵢ(s, a), looked up at the whole joint action."""
    values = critic.joint(context, joint)[..., agent, :]
    return jnp.take_along_axis(values, joint[..., agent, None], -1)[..., 0]


def test_the_baseline_is_the_critics_average_over_the_own_action_alone(scene):
    algorithm, learner, context, policy, action = scene
    critic = learner.critic
    values = algorithm.value.estimate(critic, context, policy, KEY, action=action)
    scale = algorithm.scale(learner)
    found = algorithm.value.head.advantages(values, action, NO_TARGET, scale)
    for agent in range(SPEC.agents):
        baseline = sum(
            policy.probs[..., agent, own]
            * q(critic, context, action.at[..., agent].set(own), agent)
            for own in range(4)
        )
        np.testing.assert_allclose(values.value[..., agent], baseline, atol=1e-5)
        gained = q(critic, context, action, agent) - baseline
        np.testing.assert_allclose(found[..., agent], gained, atol=1e-5)
    assert np.abs(found).max() > 0.1


def test_an_advantage_is_nothing_on_average_over_the_own_action(scene):
    algorithm, learner, context, policy, action = scene
    critic = learner.critic
    for agent in range(SPEC.agents):
        average = 0.0
        for own in range(4):
            other = action.at[..., agent].set(own)
            values = algorithm.value.estimate(critic, context, policy, KEY, action=other)
            scale = algorithm.scale(learner)
            gained = algorithm.value.head.advantages(values, other, NO_TARGET, scale)[..., agent]
            average += policy.probs[..., agent, own] * gained
        np.testing.assert_allclose(average, 0.0, atol=1e-5)


def test_returns_bootstrap_from_what_was_done(scene):
    algorithm, learner, context, policy, action = scene
    critic = learner.critic
    values = algorithm.value.estimate(critic, context, policy, KEY, action=action)
    found = algorithm.value.bootstrap(values, action)
    for agent in range(SPEC.agents):
        np.testing.assert_allclose(found[..., agent], q(critic, context, action, agent), atol=1e-5)


# --- Targets ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played():
    """λ → what a learner prepares from steps of a world that is cut after three of them, for actors
    as they come and for actors that are sure of the second action."""
    done = {}
    for lam in (0.0, 0.8):
        algorithm = ppo.Algorithm(make("coma", **SMALL, returns=GAE(gae_lambda=lam)), CUT.spec)
        copies = AutoReset(CUT, algorithm.config.num_envs)

        @jax.jit
        def run(key, sure, algorithm=algorithm, copies=copies):
            learner = algorithm.init(key)
            scene = begin(copies, learner.actor, key)
            _, steps, _ = rollout(
                copies, learner.actor, scene, key, algorithm.config.rollout_length
            )
            actor = eqx.tree_at(
                lambda actor: actor.body.net.head.layers[-1].bias,
                learner.actor,
                replace_fn=lambda bias: jnp.where(sure, jnp.array([0.0, 1e3]), bias),
            )
            learner = replace(learner, actor=actor)
            schedule = algorithm.schedule(learner, jnp.zeros(()))
            _, batch, _ = algorithm.prepare(learner, steps, key, schedule)
            return learner.critic, steps, batch

        for sure in (False, True):
            done[lam, sure] = run(jax.random.key(0), sure)
    return done


def values_of(critic, observation):
    """Q of every agent at every joint action [joint, ..., agent], and these."""
    joint = jnp.array(list(itertools.product(range(2), repeat=2)))
    batch = observation.obs.shape[1:-2]
    context, _ = critic.context(
        observation, jnp.zeros((*batch, 2, 0)), jnp.zeros(observation.obs.shape[:-2], bool)
    )
    each = [jnp.stack([q(critic, context, jnp.broadcast_to(a, context.shape[:-1]), i)
                       for i in range(2)], -1) for a in joint]  # fmt: skip
    return np.stack(each), [tuple(a) for a in np.asarray(joint)]


def drawn(values, joint, found):
    """The joint action whose values are those `found`; there must be one."""
    at = np.abs(values - found).max(-1).argmin(0)
    np.testing.assert_allclose(values[at], found, atol=1e-4)
    return joint[at]


@pytest.mark.parametrize("sure", [False, True])
def test_where_nothing_was_done_an_action_is_drawn(played, sure):
    critic, steps, batch = played[0.0, sure]
    onward = (np.asarray(batch.target) - np.asarray(steps.reward)) / algorithm_gamma()
    seen = set()
    final, joint = values_of(critic, steps.final)
    last, _ = values_of(critic, jax.tree.map(lambda x: x[None], steps.last))
    for time, copy in zip(*np.nonzero(np.asarray(steps.truncated)), strict=True):
        seen.add(drawn(final[:, time, copy], joint, onward[time, copy]))
    for copy in range(SMALL["num_envs"]):
        seen.add(drawn(last[:, 0, copy], joint, onward[-1, copy]))
    assert seen == ({(1, 1)} if sure else set(joint))


def test_targets_are_lambda_returns_of_the_joint_actions_taken(played):
    """Gₜ = rₜ + γ ((1 − λ) Q(sₜ₊₁, aₜ₊₁) + λ Gₜ₊₁), and where the episode was cut, or the horizon
    ended, rₜ + γ Q(s′, a′) of the a′ that was drawn."""
    critic, steps, batch = played[0.8, True]
    gamma, target = algorithm_gamma(), np.asarray(batch.target)
    values, joint = values_of(critic, steps.observation)
    final, _ = values_of(critic, steps.final)
    last, _ = values_of(critic, jax.tree.map(lambda x: x[None], steps.last))
    best = joint.index((1, 1))
    for copy in range(SMALL["num_envs"]):
        for time in reversed(range(SMALL["rollout_length"])):
            if steps.truncated[time, copy]:
                onward = final[best, time, copy]
            elif time + 1 == SMALL["rollout_length"]:
                onward = last[best, 0, copy]
            else:
                made = joint.index(tuple(np.asarray(steps.action)[time + 1, copy]))
                onward = 0.2 * values[made, time + 1, copy] + 0.8 * target[time + 1, copy]
            expected = np.asarray(steps.reward)[time, copy] + gamma * onward
            np.testing.assert_allclose(target[time, copy], expected, atol=1e-4)


def algorithm_gamma() -> float:
    return make("coma").gamma


# --- What belongs to it -------------------------------------------------------------------------


def test_it_tells_of_itself_what_maa2c_does(played):
    """There is no average over the others to tell of."""
    names = {}
    for algo in ("coma", "maa2c"):
        algorithm = ppo.Algorithm(make(algo, **SMALL), CUT.spec)
        _, steps, _ = played[0.8, False]
        learner = jax.eval_shape(algorithm.init, jax.random.key(0))
        update = jax.eval_shape(algorithm.update, learner, steps, jax.random.key(0), jnp.zeros(()))
        names[algo] = set(update[1])
    assert names["coma"] == names["maa2c"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_samples", 5), ("regress", "joint"), ("aggregator", "max"), ("action_fusion", "last")],
)
def test_settings_of_the_average_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name} belongs to perla-ippo, .*this run is coma"):
        configure("coma", "default", {name: value})
