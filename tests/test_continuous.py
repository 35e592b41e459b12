"""Continuous actions: what critics see of them, what may not be asked of them, what is learnt."""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import host_envs
import probes
from marks import cases
from perla.algos import actor_critic, create, diagnostics, maddpg, ppo
from perla.algos.batch import Batch
from perla.algos.values import create_value
from perla.distributions import Gaussian
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.envs.wrappers import AutoReset
from perla.errors import UserError
from perla.loops import evaluate, record, rollout
from perla.loops.anakin import Trainer
from perla.methods.estimators import Analytic, Exact, Sampled
from perla.methods.estimators import Gaussian as MomentMatching
from perla.methods.maddpg import GumbelSoftmax
from perla.methods.parts import Hard
from perla.methods.recipes import RECIPES, make
from perla.methods.values import Embedded, Multilinear, Network

STATES, AGENTS, SEEN, DIMENSIONS = 4, 3, 5, 2
SPEC = Spec("random", AGENTS, SEEN, 7, (DIMENSIONS,) * AGENTS, 10, "common", continuous=True)
KEY = jax.random.key(0)
PRESENT = np.array([[True, True], [True, False], [True, True]])
"""The second agent's action has one dimension."""


# --- Critics ------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=(0, 1))
def scene(sharing, interaction):
    """A critic, its context at a few states, and policies of which one is padded."""
    value = Embedded(critic_model=interaction)
    config = make("ippo", hidden_size=8, parameter_sharing=sharing, value=value)
    critic = actor_critic.create_critic(config, SPEC, jax.random.key(1))
    key_obs, key_mean, key_deviation = jax.random.split(KEY, 3)
    shape = (STATES, AGENTS, DIMENSIONS)
    avail = jnp.broadcast_to(PRESENT, shape)
    observation = Observation(
        jax.random.normal(key_obs, (1, STATES, AGENTS, SEEN)),
        jnp.zeros((1, STATES, SPEC.state)),
        avail[None],
    )
    context, _ = critic.context(
        observation, critic.body.initial_state((STATES,)), jnp.zeros((1, STATES), bool)
    )
    deviation = jnp.exp(jax.random.normal(key_deviation, shape) / 2 - 1)
    policy = Gaussian.masked(jax.random.normal(key_mean, shape), deviation, avail)
    return critic, context[0], policy


KINDS = [
    ("shared", Network(action_fusion="last")),
    ("separate", Network(action_fusion="first")),
    ("shared", Multilinear(rank=3)),
]


@pytest.mark.parametrize(("sharing", "interaction"), KINDS)
def test_a_critic_sees_the_others_actions_and_never_the_agents_own(sharing, interaction):
    critic, context, policy = scene(sharing, interaction)
    actions = policy.sample(KEY)
    joint = eqx.filter_jit(critic.joint)
    before = joint(context, actions)
    for agent in range(AGENTS):
        after = joint(context, actions.at[:, agent].add(1.0))
        np.testing.assert_allclose(after[:, agent], before[:, agent], atol=1e-5)
        others = np.delete(np.asarray(after - before), agent, axis=1)
        assert (np.abs(others).max(axis=(0, 2)) > 1e-3).all(), "the others must see it"


def test_actions_join_like_any_other_input():
    critic, context, policy = scene("separate", Network(action_fusion="first"))
    actions = np.asarray(policy.sample(KEY))
    rows = np.asarray(critic.body.extra_rows)  # [agent, row, width]
    for agent in range(AGENTS):
        seen = actions.copy()
        seen[:, agent] = 0.0
        expected = context[:, agent] + seen.reshape(STATES, -1) @ rows[agent]
        layer = jax.tree.map(lambda x, i=agent: x[i], critic.body.net.head)
        np.testing.assert_allclose(
            critic.joint(context, jnp.asarray(actions))[:, agent], layer.finish(expected), atol=1e-5
        )


@pytest.mark.parametrize(
    ("sharing", "kind", "form"),
    [
        ("shared", Multilinear(rank=3), Analytic()),
        ("shared", Network(), MomentMatching()),
        ("separate", Network(), MomentMatching()),
    ],
)
def test_the_closed_form_is_what_sampling_comes_to(sharing, kind, form):
    critic, context, policy = scene(sharing, kind)

    @partial(jax.jit, static_argnums=0)
    def values(estimator, keys):
        value = create_value(Embedded(critic_model=kind, estimator=estimator), SPEC)
        return jax.lax.map(lambda key: value.estimate(critic, context, policy, key).value, keys)

    exact = values(form, KEY[None])[0]
    found = np.asarray(values(Sampled(num_samples=50), jax.random.split(KEY, 200)))
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert (error > 0).all()
    assert (np.abs(found.mean(0) - exact) < 4.5 * error).all()


def test_the_gradients_variance_is_by_the_gaussians_own_score():
    policy = Gaussian(jnp.array([[[0.5, 0.0]], [[0.0, 0.0]]]), jnp.array([[[2.0, 0.0]]] * 2))
    action, advantage = jnp.array([[[1.5, 0.0]], [[-2.0, 0.0]]]), jnp.array([[2.0], [-1.0]])
    # A (a − μ)/σ² and A (((a − μ)/σ)² − 1); of the second dimension there is none.
    gradients = np.array([[2 * 0.25, 2 * (0.25 - 1)], [-1 * -0.5, -1 * (1 - 1)]])
    expected = ((gradients - gradients.mean(0)) ** 2).sum(-1).mean()
    found = diagnostics.gradient_variance(policy, action, advantage, jnp.array([True, True]))
    assert found.item() == pytest.approx(expected)


# --- The actor's loss ---------------------------------------------------------------------------


def test_the_actors_loss_counts_the_dimensions_that_there_are():
    config = make("ippo", **probes.PLAIN | {"hidden_size": 8, "init_std": 0.5, "clip_eps": 0.1})
    algorithm = ppo.Algorithm(config, SPEC)
    learner = jax.jit(algorithm.init)(KEY)
    rng = np.random.default_rng(0)
    shape = (2, 3, AGENTS)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), float)

    avail = jnp.broadcast_to(PRESENT, (*shape, DIMENSIONS))
    old = Gaussian.masked(0.3 * normal(*shape, DIMENSIONS), jnp.full(avail.shape, 0.6), avail)
    batch = Batch(
        observation=Observation(normal(*shape, SEEN), normal(2, 3, SPEC.state), avail),
        is_first=jnp.zeros((2, 3), bool),
        valid=jnp.asarray([[True, True, False], [True, True, True]]),
        hidden_state=jnp.zeros((*shape, 0)),
        critic_hidden_state=jnp.zeros((*shape, 0)),
        action=old.sample(KEY),
        policy=old,
        prediction=normal(*shape),
        target=normal(*shape),
        advantage=normal(*shape),
    )
    loss, metrics = jax.jit(algorithm.actor_loss)(
        learner.actor, batch, batch.advantage, jnp.float32(0.3)
    )

    new, _ = learner.actor.unroll(batch.observation, batch.hidden_state[0], batch.is_first)
    present, loss_mask = np.asarray(avail), np.asarray(batch.valid)
    mean = np.asarray(new.mean, float)
    by_scipy = scipy.stats.norm(mean, 0.5), scipy.stats.norm(np.asarray(old.mean, float), 0.6)
    log_new, log_old = (
        np.where(present, one.logpdf(np.asarray(batch.action, float)), 0.0).sum(-1)
        for one in by_scipy
    )
    entropy = np.where(present, by_scipy[0].entropy(), 0.0).sum(-1)
    advantage = np.asarray(batch.advantage, float)
    advantage = (advantage - advantage[loss_mask].mean()) / advantage[loss_mask].std()
    ratio = np.exp(log_new - log_old)
    gain = np.minimum(ratio * advantage, np.clip(ratio, 0.9, 1.1) * advantage)
    expected = -(gain + 0.3 * entropy)[loss_mask].mean()
    assert loss == pytest.approx(expected, rel=1e-4)
    assert metrics["entropy"] == pytest.approx(entropy[loss_mask].mean(), rel=1e-4)
    assert metrics["kl"] == pytest.approx(
        (ratio - 1 - log_new + log_old)[loss_mask].mean(), rel=1e-3
    )


# --- What does not fit --------------------------------------------------------------------------

ACTION_VALUES = Embedded(critic_form="action-value")
DISCRETE = probes.MATRIX.spec
MISFITS = [
    ("coma", {}, SPEC, "value 'counterfactual': .*random are continuous; use mappo or perla-mappo"),
    (
        "perla-ippo",
        {"value": ACTION_VALUES},
        SPEC,
        "'action-value': .*use critic_form 'state-value'",
    ),
    ("perla-ippo", {"value": Embedded(estimator=Exact())}, SPEC, "'exact': continuous .*'sampled'"),
    ("perla-ippo", {"value": Embedded(estimator=Analytic())}, SPEC, "use critic_model 'multilin"),
    ("iql", {}, SPEC, "mixer 'iql': .*continuous; use maddpg, mappo or perla-mappo"),
    ("qmix", {}, SPEC, "mixer 'qmix': .*continuous; use maddpg, mappo or perla-mappo"),
    ("maddpg", {"relaxation": GumbelSoftmax(temperature=2.0)}, SPEC, "temperature = 2.0: .*noise"),
    (
        "maddpg",
        {"exploration_noise": 0.3},
        DISCRETE,
        "exploration_noise = 0.3: belongs to continuous .*leave it out",
    ),
    ("ippo", {"init_std": 0.3}, DISCRETE, "init_std = 0.3: belongs to continuous .*leave it out"),
    (
        "happo",
        {"tanh_squash": True},
        DISCRETE,
        "tanh_squash = True: belongs to continuous .*leave it out",
    ),
]


@pytest.mark.parametrize(("algo", "settings", "spec", "says"), MISFITS)
def test_what_cannot_be_is_refused_in_one_line(algo, settings, spec, says):
    with pytest.raises(UserError, match=says) as refusal:
        create.create(make(algo, **settings), spec)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("spec", [SPEC, DISCRETE], ids=["continuous", "discrete"])
def test_learners_begin_with_the_types_that_they_keep(spec):
    """A type that is weak at first is not after an update, which would then compile once more."""
    made = 0
    for algo in RECIPES:
        try:
            algorithm = create.create(make(algo), spec)
        except UserError:
            continue  # for discrete actions only
        made += 1
        learner = jax.eval_shape(algorithm.init, KEY)
        assert not any(leaf.weak_type for leaf in jax.tree.leaves(learner)), algo
    assert made >= 8


# --- What the world is given --------------------------------------------------------------------


class Echo:
    """`host_envs.Echo` in JAX; its state is what it was given."""

    spec = host_envs.Echo.spec

    def reset(self, key):
        given = jnp.zeros((2, 2))  # the numbers, and the time
        return given, self.see(given)

    def step(self, key, given, action):
        given = jnp.stack([action[0], given[1] + 1])
        seen, over = self.see(given), given[1, 0] == self.spec.limit
        return given, TimeStep(seen, action.sum(-1), jnp.array(False), over, seen)

    def render(self, given):
        raise AssertionError("nobody looks")

    def see(self, given):
        return Observation(jnp.zeros((1, 1)), given[0, :1], jnp.ones((1, 2), bool))


@pytest.fixture(scope="module")
def wild():
    """An actor most of whose draws are far out."""
    return create.create(make("ippo", hidden_size=4, init_std=9.0), Echo.spec).init(KEY).actor


def test_learners_keep_what_was_drawn_and_the_world_is_given_the_nearest_within(wild):
    copies = AutoReset(Echo(), 8)
    scene = rollout.begin(copies, wild, KEY)
    _, seen, _ = jax.jit(rollout.rollout, static_argnums=(0, 4))(copies, wild, scene, KEY, 6)
    assert (jnp.abs(seen.action) > 1).mean() > 0.5
    np.testing.assert_array_equal(seen.reward, jnp.clip(seen.action, -1, 1).sum(-1))


def test_played_or_shown_it_is_given_nothing_else(wild):
    sampled = jnp.zeros(32, bool)
    returns = jax.jit(evaluate.evaluate, static_argnums=0)(Echo(), wild, KEY, sampled).returns
    assert 2 < jnp.abs(returns).max() <= 8  # four steps of twice 1 at most
    for given in (
        jnp.stack(evaluate.watch(Echo(), wild, KEY, greedy=False))[:, 0],
        np.stack(record.record_host(host_envs.Echo(), wild, KEY, greedy=False).states),
    ):
        assert np.abs(given).max() == 1.0


# --- Learning -----------------------------------------------------------------------------------

SMALL = {
    "num_envs": 16,
    "rollout_length": 4,
    "gamma": probes.GAMMA,
    "actor_network": "mlp",
    "hidden_size": 16,
    "normalize_rewards": False,
    "init": "torch",
    "lr": 1e-2,
}
PPO_SMALL = probes.PLAIN | SMALL | {"num_layers": 1, "init_std": 0.4, "ent_coef": 0.0}
DDPG_SMALL = SMALL | {
    "num_layers": 1,
    "critic_num_layers": 2,
    "buffer_size": 256,
    "target": Hard(target_update_interval=10),
    "logit_penalty": 0.0,
    "exploration_noise": 0.3,
}


def train(world, algo, updates, **settings):
    config = make(algo, **settings)
    steps = updates * config.num_envs * config.length(world.spec.limit)
    trainer = Trainer(world, config, seeds=(0,), steps=steps, eval_episodes=1)
    population, (metrics,) = trainer.advance(trainer.init(), steps)
    learner = jax.tree.map(lambda x: jnp.asarray(x[0]), trainer.export(population).learner)
    return trainer.algorithm, learner, metrics


def perla(algo, **settings):
    return {"value": RECIPES[algo].settings["value"].replace(**settings)}


CASES = {
    "aim, A2C": (probes.AIM, "ia2c", {"parameter_sharing": "separate"}),
    "aim, squashed": (probes.AIM, "ippo", {"tanh_squash": True, "ent_coef": 1e-3}),
    "wait, GRU": (probes.WAIT, "mappo", {"actor_network": "gru"}),
    "wait, HAPPO": (probes.WAIT, "happo", {}),
    "meet, 17 draws": (probes.MEET, "perla-mappo", {}),
    "meet, in closed form": (
        probes.MEET, "perla-ippo", perla("perla-ippo", critic_model=Multilinear(rank=4))),
    "meet, as many draws as it takes": (
        probes.MEET, "perla-happo",
        perla("perla-happo", estimator=Sampled(num_samples="auto", gradient_samples=5))),
}  # fmt: skip


LONG = (
    "aim, squashed",
    "meet, as many draws as it takes",
    "meet, 17 draws",
    "aim, A2C",
    "wait, GRU",
    "wait, HAPPO",
)
"""Cases that are compiled for long, and for `make test-all` alone."""


@pytest.mark.parametrize("case", cases(CASES, *LONG))
def test_learns_the_known_values_and_actions(case):
    world, algo, settings = case
    algorithm, learner, metrics = train(world, algo, 150, **PPO_SMALL | settings)

    @jax.jit
    def ask(moment):
        observation = world.see(moment)
        policy, _ = learner.actor(observation, learner.actor.initial_state(()), jnp.array(True))
        context, _ = learner.critic.context(
            jax.tree.map(lambda x: x[None], observation),
            learner.critic.body.initial_state(()),
            jnp.array([True]),
        )
        values = algorithm.value.estimate(learner.critic, context[0], policy, KEY).value
        return values, policy.mode(), policy.sample(KEY)

    for (time, signs), known in world.known.items():
        if settings.get("actor_network") == "gru" and time:
            continue
        values, best, drawn = ask(world.moment(time, signs))
        np.testing.assert_allclose(values, known, atol=0.15, err_msg=f"{time}, {signs}")
        if time == world.length - 1:
            np.testing.assert_allclose(best, world.best(signs), atol=0.15)
        assert (drawn[:, list(world.forbidden)] == 0).all()
    if isinstance(algorithm.config.value, Embedded):
        assert metrics["gradient_variance_perla"] > 0
        closed_form = isinstance(algorithm.config.value.critic_model, Multilinear)
        assert ("gradient_variance_decentralised" in metrics) == closed_form


@pytest.mark.slow
def test_maddpg_learns_the_known_values_and_actions():
    world = probes.WAIT
    _, learner, _ = train(world, "maddpg", 200, **DDPG_SMALL, last_action=True)
    assert isinstance(learner, maddpg.Learner)

    @jax.jit
    def ask(moment):
        observation = world.see(moment)
        policy, _ = learner.actor(observation, learner.actor.initial_state(()), jnp.array(True))
        value = learner.networks.critic(observation.state, policy.mode()[None])
        return value, policy.mode()

    for (time, signs), known in world.known.items():
        value, best = ask(world.moment(time, signs))
        np.testing.assert_allclose(value, known, atol=0.15, err_msg=f"{time}, {signs}")
        if time == world.length - 1:
            np.testing.assert_allclose(best, world.best(signs), atol=0.15)


def test_every_continuous_probe_is_learnt_from():
    assert {world.name for world, *_ in CASES.values()} == {w.name for w in probes.CONTINUOUS}
