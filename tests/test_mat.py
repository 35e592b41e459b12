"""MAT: the transformer against its definition, its joint policy, and learning in probe worlds."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import host_envs
import probes
from perla.algos.mat import MAT, Algorithm, Learner
from perla.distributions import Categorical, Gaussian
from perla.envs.protocol import Observation, Spec
from perla.envs.wrappers import AutoReset
from perla.errors import UserError
from perla.loops import anakin, host
from perla.loops.rollout import begin, rollout
from perla.nets.layers import Linear
from perla.nets.transformer import Attention, Autoregressive, Transformer

AGENTS, ACTIONS, OBS, BATCH = 3, 3, 4, 5
SPEC = Spec("random", AGENTS, OBS, 1, (ACTIONS,) * AGENTS, 10, "common", mortal=True)
CONTINUOUS = Spec("random", AGENTS, OBS, 1, (2,) * AGENTS, 10, "common", continuous=True)
SMALL = {"num_envs": 8, "rollout_length": 6, "hidden_size": 8, "num_heads": 2, "num_blocks": 2}


def scattered(create, *arguments):
    """The module that `create` makes, with random parameters, none near zero."""
    rng = np.random.default_rng(0)
    shapes = eqx.filter_eval_shape(create, *arguments)
    return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), float), shapes)


@functools.cache
def network(spec: Spec, **settings) -> Transformer:
    algorithm = MAT(**SMALL | settings).create(spec)
    return scattered(lambda key: algorithm.init(key).actor, jax.random.key(0))


@functools.cache
def observation(spec: Spec) -> Observation:
    """Random states, in which actions are missing and, if they may be, agents dead."""
    rng = np.random.default_rng(0)
    avail = rng.random((BATCH, AGENTS, spec.max_actions)) < 0.6
    avail[..., 1] = True
    alive = rng.random((BATCH, AGENTS)) < 0.7
    return Observation(
        jnp.asarray(rng.normal(size=(BATCH, AGENTS, spec.obs)), float),
        jnp.zeros((BATCH, 1)),
        jnp.asarray(avail | spec.continuous),
        jnp.asarray(alive) if spec.mortal else None,
    )


def policy_of(spec: Spec) -> Autoregressive:
    actor = network(spec)
    return act(actor, observation(spec))


@eqx.filter_jit
def act(actor: Transformer, observation: Observation) -> Autoregressive:
    policy, _ = actor(observation, actor.initial_state((BATCH,)), jnp.ones(BATCH, bool))
    return policy


@eqx.filter_jit
def given(policy: Autoregressive, action):
    return policy.given(action)


@eqx.filter_jit
def sampled(policy: Autoregressive, key):
    return policy.sample(key)


def joint_actions(seed: int = 0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(ACTIONS, size=(BATCH, AGENTS)), jnp.int32)


# --- Networks -----------------------------------------------------------------------------------


def test_attention_is_a_mean_of_values_weighted_by_queries_and_keys():
    size, heads = 6, 2
    attention = scattered(Attention.create, jax.random.key(0), size, heads)
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(4, size)).astype(np.float32)
    mask = np.tril(np.ones((4, 4), bool))
    read = attention(jnp.asarray(tokens), attention.memory(jnp.asarray(tokens)), jnp.asarray(mask))

    def dense(layer: Linear, x):
        return x @ np.asarray(layer.weight) + np.asarray(layer.bias)

    for i in range(4):
        heard = []
        for part in (slice(0, 3), slice(3, 6)):
            query = dense(attention.query, tokens[i])[part]
            scores = [query @ dense(attention.key, tokens[j])[part] for j in range(i + 1)]
            weights = np.exp(np.array(scores) / 3**0.5)
            values = [dense(attention.value, tokens[j])[part] for j in range(i + 1)]
            heard.append((weights / weights.sum()) @ np.array(values))
        expected = dense(attention.output, np.concatenate(heard))
        np.testing.assert_allclose(read[i], expected, rtol=1e-4, atol=1e-5)


def test_without_ids_the_encoder_knows_no_order():
    order = jnp.array([2, 0, 1])
    values = eqx.filter_jit(lambda actor, obs: actor.encoder.values(actor.encoder(obs)))
    obs = observation(SPEC).obs
    for ids, same in ((False, True), (True, False)):
        actor = network(SPEC, agent_ids=ids)
        of_all, of_permuted = values(actor, obs), values(actor, obs[:, order])
        assert of_all.shape == (BATCH, AGENTS)
        assert np.allclose(of_all[:, order], of_permuted, atol=1e-5) is same


def test_every_agents_value_depends_on_every_observation():
    actor, obs = network(SPEC), observation(SPEC).obs[0]
    slope = jax.jit(jax.jacobian(lambda obs: actor.encoder.values(actor.encoder(obs))))(obs)
    assert (jnp.abs(slope).max(-1) > 1e-6).all()  # [agent, agent, feature]


ORACLE = Spec("oracle", AGENTS, 6, 1, (4,) * AGENTS, 10, "common")


def oracle_inputs() -> tuple[Transformer, Observation, jax.Array]:
    """A network without what the authors' has not (ids, and a bias of the actions' embedding), and
    observations that their layer norm of the inputs leaves alone."""
    actor = network(ORACLE, agent_ids=False)
    bias = jnp.zeros_like(actor.decoder.embedding.bias)
    actor = eqx.tree_at(lambda actor: actor.decoder.embedding.bias, actor, bias)
    rng = np.random.default_rng(1)
    obs = rng.normal(size=(2, AGENTS, ORACLE.obs))
    obs = (obs - obs.mean(-1, keepdims=True)) / obs.std(-1, keepdims=True)
    avail = np.ones((2, AGENTS, 4), bool)
    avail[0, 1, 2] = avail[1, 0, 0] = avail[1, 2, 3] = False
    action = jnp.array([[3, 1, 0], [1, 2, 0]])
    return (
        actor,
        Observation(jnp.asarray(obs, float), jnp.zeros((2, 1)), jnp.asarray(avail)),
        action,
    )


def test_with_the_same_parameters_the_outputs_are_those_of_the_authors_code():
    """Their `MultiAgentTransformer` (PKU-MARL/Multi-Agent-Transformer at be3ff49), in PyTorch, gave
    these numbers for `oracle_inputs`."""
    actor, observation, action = oracle_inputs()

    @jax.jit
    def outputs():
        policy, _ = actor(observation, actor.initial_state((2,)), jnp.ones(2, bool))
        each = policy.given(action)
        return actor.values(observation), each.log_prob(action), each.entropy(), policy.mode()

    values, log_prob, entropy, mode = outputs()
    np.testing.assert_allclose(
        values, [[0.95793, 1.02690, 0.96796], [0.93586, 0.95816, 0.87556]], atol=2e-5
    )
    np.testing.assert_allclose(
        log_prob, [[-1.87786, -2.07990, -0.42288], [-1.09301, -2.57077, -0.25731]], atol=2e-5
    )
    np.testing.assert_allclose(
        entropy, [[1.01011, 0.80129, 1.00999], [1.06099, 1.01049, 0.68796]], atol=2e-5
    )
    np.testing.assert_array_equal(mode, [[0, 0, 0], [3, 0, 0]])


# --- The joint policy ---------------------------------------------------------------------------


@pytest.mark.parametrize("agent", range(AGENTS))
def test_an_action_changes_the_policies_of_the_agents_behind_it_alone(agent):
    policy, action = policy_of(SPEC), joint_actions()
    other = action.at[:, agent].set((action[:, agent] + 1) % ACTIONS)
    before, after = given(policy, action).log_probs, given(policy, other).log_probs
    np.testing.assert_array_equal(before[:, : agent + 1], after[:, : agent + 1])
    choosing = (policy.avail.sum(-1) > 1) & policy.alive
    changed = (before != after).any(-1)
    assert (changed == choosing)[:, agent + 1 :].all()


def test_one_pass_over_all_agents_is_the_decoding_of_one_after_another():
    policy, action = policy_of(SPEC), joint_actions()
    decoder, memories = policy.decoder, policy.decoder.memories(policy.encoding)
    step = eqx.filter_jit(lambda *inputs: decoder(*inputs))
    token = decoder.start((BATCH,))
    for agent in range(AGENTS):
        encoding = policy.encoding[:, agent : agent + 1]
        outputs, memories = step(token[:, None], encoding, memories, jnp.int32(agent))
        alone = Categorical.masked(
            outputs[:, 0], policy.avail[:, agent], policy.alive[:, agent]
        ).log_probs
        together = given(policy, action).log_probs[:, agent]
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
        token = decoder.token(action[:, agent])


@pytest.mark.parametrize("spec", [SPEC, CONTINUOUS], ids=["discrete", "continuous"])
def test_samples_and_modes_are_those_of_the_policies_given_themselves(spec):
    policy, key = policy_of(spec), jax.random.key(3)
    sample, mode = sampled(policy, key), eqx.filter_jit(lambda policy: policy.mode())(policy)
    u = jax.random.uniform(key, sample.shape)
    kind = Gaussian if spec.continuous else Categorical
    assert isinstance(given(policy, sample), kind)
    np.testing.assert_allclose(given(policy, sample).quantile(u), sample, atol=1e-5)
    np.testing.assert_allclose(given(policy, mode).mode(), mode, atol=1e-5)


def test_the_probabilities_of_all_joint_actions_add_up_to_one():
    policy = policy_of(SPEC)
    total, entropy = jnp.zeros(BATCH), jnp.zeros(BATCH)
    for action in itertools.product(range(ACTIONS), repeat=AGENTS):
        log_prob = given(policy, jnp.tile(jnp.array(action), (BATCH, 1))).log_prob(
            jnp.tile(jnp.array(action), (BATCH, 1))
        )
        joint = log_prob.sum(-1)
        total += jnp.exp(joint)
        entropy -= jnp.where(joint > -1e9, jnp.exp(joint) * joint, 0.0)
    np.testing.assert_allclose(total, 1.0, atol=1e-5)
    # H(a₁, …, a_N) = E Σᵢ H(aᵢ | a₁, …, aᵢ₋₁), the bonus that training estimates from samples.
    draws = 4000
    keys = jax.random.split(jax.random.key(0), draws)
    estimate = jax.jit(jax.vmap(lambda key: policy.given(policy.sample(key)).entropy().sum(-1)))(
        keys
    )
    np.testing.assert_allclose(estimate.mean(0), entropy, atol=0.05)


def test_no_unavailable_action_is_taken_and_the_dead_take_the_first_available_one():
    policy = policy_of(SPEC)
    actions = jax.jit(jax.vmap(policy.sample))(jax.random.split(jax.random.key(0), 200))
    avail, alive = np.asarray(policy.avail), np.asarray(policy.alive)
    taken = np.take_along_axis(np.tile(avail, (200, 1, 1, 1)), np.asarray(actions)[..., None], -1)
    assert taken.all()
    first = np.broadcast_to(avail.argmax(-1), actions.shape)
    np.testing.assert_array_equal(actions[:, ~alive], first[:, ~alive])
    assert (np.asarray(actions).std(0) > 0)[alive & (avail.sum(-1) > 1)].all()


# --- The learner --------------------------------------------------------------------------------


class Rolled(NamedTuple):
    algorithm: Algorithm
    learner: Learner
    trajectory: object


@pytest.fixture(scope="module")
def rolled() -> Rolled:
    config = MAT(**SMALL, normalize_values=True, num_minibatches=2)
    algorithm = config.create(probes.MORTAL.spec)
    env = AutoReset(probes.MORTAL, config.num_envs)

    @jax.jit
    def run(key):
        learner = algorithm.init(key)
        state = begin(env, learner.actor, key)
        return learner, rollout(env, learner.actor, state, key, config.length(2))[1]

    return Rolled(algorithm, *run(jax.random.key(0)))


def test_a_rollout_records_what_the_actions_were_drawn_from(rolled):
    learner, trajectory = rolled.learner, rolled.trajectory
    policy, _ = learner.actor(trajectory.observation, trajectory.hidden_state, trajectory.is_first)
    expected = given(policy, trajectory.action).log_probs
    np.testing.assert_allclose(trajectory.policy.log_probs, expected, atol=1e-5)


def test_before_the_first_step_no_ratio_has_moved(rolled):
    algorithm, learner, trajectory = rolled

    @jax.jit
    def losses():
        _, batch, _ = algorithm.prepare(learner, trajectory)
        return algorithm.loss(learner.actor, learner, batch, jnp.float32(0.0))

    loss, metrics = losses()
    assert metrics["clip_fraction"] == 0
    np.testing.assert_allclose(metrics["kl"], 0.0, atol=1e-6)
    assert jnp.isfinite(loss)


def test_dead_agents_are_not_learnt_from(rolled):
    algorithm, learner, trajectory = rolled
    dead = ~trajectory.observation.alive
    assert dead.any()
    marred = trajectory._replace(
        policy=Categorical(jnp.where(dead[..., None], -3.0, trajectory.policy.log_probs))
    )
    update = jax.jit(algorithm.update)
    clean, _ = update(learner, trajectory, jax.random.key(1), jnp.float32(0.0))
    other, _ = update(learner, marred, jax.random.key(1), jnp.float32(0.0))
    assert same(clean, other)
    assert not same(clean.actor, learner.actor)


def same(a, b) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.slow
def test_a_restored_population_goes_on_as_if_it_had_not_been_interrupted():
    config = MAT(**SMALL)
    trainer = anakin.Trainer(probes.PATIENCE, config, seeds=(0,), steps=144, eval_episodes=2)
    population, _ = trainer.advance(trainer.init(), 48)
    exported = trainer.export(population)
    whole, _ = trainer.advance(population, 144)
    resumed, _ = trainer.advance(trainer.restore(exported), 144)
    assert same(trainer.export(whole), trainer.export(resumed))


@pytest.mark.slow
def test_host_environments_train_it_too():
    trainer = host.Trainer(
        host_envs.Patience(), host_envs.Patience, MAT(**SMALL), seeds=(0,), steps=96,
        eval_episodes=2,
    )  # fmt: skip
    _, rows = trainer.advance(trainer.init(), 96)
    trainer.close()
    assert rows[0]["step"] == 96
    assert 0 <= rows[0]["return"] <= 1
    assert rows[0]["kl"] < 0.1


@pytest.mark.parametrize(
    ("settings", "spec", "message"),
    [
        ({"num_heads": 3}, SPEC, "num_heads = 3: must divide hidden_size = 8"),
        ({"num_minibatches": 5}, SPEC, "num_minibatches = 5: must divide the 48 steps"),
        ({"init_std": 0.5}, SPEC, "init_std = 0.5: belongs to continuous actions"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, spec, message):
    with pytest.raises(UserError, match=message):
        MAT(**SMALL | settings).create(spec)


# --- Learning -----------------------------------------------------------------------------------

DIFFER = probes.Probe(
    "differ",
    lambda moment, action: (action[0] != action[1]).astype(float),
    {(0, (1, 1)): 1.0},
    agents=2,
    actions=2,
)
"""Two agents that nothing distinguishes earn 1 if their actions differ."""

WORLDS = [
    probes.TOGETHER, probes.PATIENCE, probes.MORTAL, probes.TEMPTATION, probes.ENDLESS,
    probes.WAIT, DIFFER,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_values_and_joint_actions_of_probe_worlds_are_found(world):
    config = MAT(
        num_envs=16, rollout_length=6, hidden_size=16, lr=3e-3, gamma=probes.GAMMA,
        normalize_rewards=False, normalize_advantages=True, agent_ids=world is not DIFFER,
    )  # fmt: skip
    steps = 300 * config.num_envs * config.length(world.spec.limit)
    trainer = anakin.Trainer(world, config, seeds=(0,), steps=steps, eval_episodes=1)
    population, _ = trainer.advance(trainer.init(), steps)
    actor = population[0].learner.actor
    for (time, signs), known in world.known.items():
        seen = world.see(world.moment(time, signs))
        np.testing.assert_allclose(actor.values(seen), known, atol=0.15)
        if world.best is not None and time == world.length - 1:
            policy, _ = actor(seen, actor.initial_state(()), jnp.array(True))
            best = np.asarray(world.best(signs))
            alive = True if seen.alive is None else np.asarray(seen.alive)
            near = np.abs(np.asarray(policy.mode()) - best).reshape(len(best), -1).max(-1)
            assert (near < 0.15)[np.broadcast_to(alive, near.shape)].all()
