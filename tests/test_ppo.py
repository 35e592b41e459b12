"""The parts of the actor-critic learner, each against its formula."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probes
from perla.algos import ppo
from perla.algos.batch import Batch, minibatches
from perla.algos.normalise import RunningMeanStd, mean, variance
from perla.distributions import Categorical
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.envs.wrappers import AutoReset
from perla.errors import UserError
from perla.loops.rollout import begin, rollout
from perla.methods.ppo import PPO, Hard, Huber, NStep, Soft, Squared
from perla.methods.recipes import make

SPEC = Spec("random", 2, 3, 4, (5, 5), 10, "common")
TIME, COPIES = 4, 3
CLOSE = 1e-2
"""How near standardised numbers are: the deviation is held away from zero, a little too large."""
SHAPE = (TIME, COPIES, SPEC.agents)


def small(**settings) -> PPO:
    return PPO(**probes.PLAIN, hidden_size=8, init="torch").replace(**settings)


@functools.cache
def learner_of(config: PPO, spec: Spec = SPEC) -> tuple[ppo.Algorithm, ppo.Learner]:
    algorithm = ppo.Algorithm(config, spec)
    return algorithm, jax.jit(algorithm.init)(jax.random.key(0))


def random_batch(seed: int = 0, spec: Spec = SPEC) -> Batch:
    """Steps of which some do not count; the actions come from policies of long ago."""
    rng = np.random.default_rng(seed)
    shape = (TIME, COPIES, spec.agents)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return Batch(
        observation=Observation(
            normal(*shape, spec.obs),
            normal(TIME, COPIES, spec.state),
            jnp.ones((*shape, spec.max_actions), bool),
        ),
        is_first=jnp.zeros((TIME, COPIES), bool),
        valid=jnp.asarray(rng.random((TIME, COPIES)) < 0.7),
        hidden_state=jnp.zeros((*shape, 0)),
        critic_hidden_state=jnp.zeros((*shape, 0)),
        action=jnp.asarray(rng.integers(spec.max_actions, size=shape), jnp.int32),
        policy=Categorical(jax.nn.log_softmax(0.5 * normal(*shape, spec.max_actions))),
        prediction=normal(*shape),
        target=2 * normal(*shape),
        advantage=normal(*shape),
    )


@eqx.filter_jit
def policy_of(actor, batch: Batch) -> Categorical:
    return actor.unroll(batch.observation, batch.hidden_state[0], batch.is_first)[0]


@eqx.filter_jit
def predicted_by(critic, batch: Batch):
    context, _ = critic.context(batch.observation, batch.critic_hidden_state[0], batch.is_first)
    return critic.without_actions(context)[..., 0]


def valid_mean(x, batch: Batch) -> float:
    return np.asarray(x, np.float64)[np.asarray(batch.valid)].mean()


# --- The losses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.2, 0.05, None])
@pytest.mark.parametrize("normalise", [True, False])
def test_the_actors_loss_is_the_clipped_surrogate(clip, normalise):
    config = small(clip_eps=clip, normalize_advantages=normalise)
    algorithm, learner = learner_of(config)
    batch = random_batch()
    loss, metrics = jax.jit(algorithm.actor_loss)(
        learner.actor, batch, batch.advantage, jnp.float32(0.3)
    )

    policy = policy_of(learner.actor, batch)
    new, old = (
        np.take_along_axis(np.asarray(p.log_probs), np.asarray(batch.action)[..., None], -1)[..., 0]
        for p in (policy, batch.policy)
    )
    advantage = np.asarray(batch.advantage, np.float64)
    if normalise:
        loss_mask = advantage[np.asarray(batch.valid)]
        advantage = (advantage - loss_mask.mean()) / loss_mask.std()
    ratio = np.exp(new - old)
    gain = new * advantage
    if clip is not None:
        gain = np.minimum(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)
        outside = np.abs(ratio - 1) > clip
        assert metrics["clip_fraction"] == pytest.approx(valid_mean(outside, batch), abs=1e-6)
    entropy = -(np.exp(policy.log_probs) * policy.log_probs).sum(-1)
    expected = -valid_mean(gain, batch) - 0.3 * valid_mean(entropy, batch)
    assert loss == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_ratio_that_left_the_bound_in_its_advantages_favour_has_no_gradient():
    algorithm, learner = learner_of(small(normalize_advantages=False))
    batch = random_batch()
    policy = policy_of(learner.actor, batch)
    unlikely = Categorical(policy.log_probs - 1.0)  # ratio e
    gradient = jax.jit(jax.grad(algorithm.actor_loss, has_aux=True))

    def norm(advantage):
        part = batch._replace(policy=unlikely)
        gradients, _ = gradient(learner.actor, part, jnp.full(SHAPE, advantage), jnp.float32(0.0))
        return max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients))

    assert norm(1.0) == 0
    assert norm(-1.0) > 0


@pytest.mark.parametrize("loss", [Squared(), Huber(huber_delta=0.5)], ids=["squared", "huber"])
@pytest.mark.parametrize("value_clip", [None, 0.2])
def test_the_critics_loss_is_its_error_on_the_steps_that_count(loss, value_clip):
    config = small(loss=loss, value_clip_eps=value_clip, value_coef=0.5)
    algorithm, learner = learner_of(config)
    batch = random_batch()
    total, (_, metrics) = jax.jit(algorithm.critic_loss)(
        learner.critic,
        learner,
        batch,
        jax.random.key(0),
        algorithm.schedule(learner, jnp.zeros(())),
    )

    def error(difference):
        if loss == Squared():
            return difference**2
        small = np.abs(difference) <= 0.5
        return np.where(small, difference**2 / 2, 0.5 * (np.abs(difference) - 0.25))

    predicted = np.asarray(predicted_by(learner.critic, batch), np.float64)
    before, target = np.asarray(batch.prediction), np.asarray(batch.target)
    errors = error(predicted - target)
    if value_clip is not None:
        moved = before + np.clip(predicted - before, -value_clip, value_clip)
        errors = np.maximum(errors, error(moved - target))
    assert metrics["value_loss"] == pytest.approx(valid_mean(errors, batch), rel=1e-4)
    assert total == pytest.approx(0.5 * valid_mean(errors, batch), rel=1e-4)


def test_the_critic_learns_standardised_targets():
    config = small(normalize_values=True)
    algorithm, learner = learner_of(config)
    batch = random_batch()
    learner = replace(
        learner, targets=RunningMeanStd(jnp.float32(9.0), jnp.float32(3.0), jnp.float32(4.0))
    )
    _, (_, metrics) = jax.jit(algorithm.critic_loss)(
        learner.critic,
        learner,
        batch,
        jax.random.key(0),
        algorithm.schedule(learner, jnp.zeros(())),
    )
    predicted = np.asarray(predicted_by(learner.critic, batch))
    expected = valid_mean((predicted - (np.asarray(batch.target) - 3) / 2) ** 2, batch)
    assert metrics["value_loss"] == pytest.approx(expected, rel=CLOSE)
    np.testing.assert_allclose(algorithm.scale(learner).restore(jnp.float32(1.0)), 5.0, rtol=CLOSE)


# --- Statistics ---------------------------------------------------------------------------------


def test_means_and_variances_are_over_the_steps_that_count():
    x = jax.random.normal(jax.random.key(0), (7, 3, 2))
    valid = jax.random.bernoulli(jax.random.key(1), 0.6, (7, 3))
    loss_mask = np.asarray(x)[np.asarray(valid)]
    np.testing.assert_allclose(mean(x, valid), loss_mask.mean(), rtol=1e-5)
    np.testing.assert_allclose(variance(x, valid), loss_mask.var(), rtol=1e-5)


def test_running_statistics_are_those_of_everything_seen():
    rng = np.random.default_rng(0)
    running, seen = RunningMeanStd.create(), []
    update = jax.jit(RunningMeanStd.update)
    for scale in range(1, 6):
        x = rng.normal(loc=scale, scale=scale, size=(6, 3, 2)).astype(np.float32)
        valid = rng.random((6, 3)) < 0.7
        running = update(running, jnp.asarray(x), jnp.asarray(valid))
        seen.append(x[valid].ravel())
        everything = np.concatenate(seen)
        np.testing.assert_allclose(running.mean, everything.mean(), rtol=1e-4)
        np.testing.assert_allclose(running.variance, everything.var(), rtol=1e-4)
    x = jnp.asarray(rng.normal(size=5), jnp.float32)
    np.testing.assert_allclose(
        running.standardise(x), (x - everything.mean()) / everything.std(), rtol=CLOSE, atol=1e-5
    )
    np.testing.assert_allclose(running.restore(running.standardise(x)), x, atol=1e-5)


def test_nothing_seen_is_the_identity():
    x = jnp.array([-2.0, 0.0, 3.0])
    np.testing.assert_allclose(RunningMeanStd.create().standardise(x), x, rtol=CLOSE)


def test_what_never_changes_is_not_blown_up():
    constant = jnp.full((4, 3, 2), 7.0)
    running = RunningMeanStd.create().update(constant, jnp.ones((4, 3), bool))
    assert np.abs(running.standardise(constant)).max() < 1e-3


# --- Minibatches --------------------------------------------------------------------------------


@pytest.mark.parametrize(("parts", "length"), [(2, 1), (3, 2), (6, 2), (3, 4)])
def test_minibatches_contain_every_sequence_once(parts, length):
    number = jnp.arange(TIME * COPIES).reshape(TIME, COPIES)
    each_agent = jnp.broadcast_to(number[..., None], SHAPE)
    batch = random_batch()._replace(target=each_agent.astype(float), action=each_agent)
    split = minibatches(batch, parts, length, jax.random.key(0))
    steps = np.asarray(split.action)[..., 0]
    assert steps.shape == (parts, length, TIME * COPIES // length // parts)
    sequences = {tuple(s) for part in steps for s in part.T}
    expected = {
        tuple(np.asarray(number)[start : start + length, copy].tolist())
        for copy in range(COPIES)
        for start in range(0, TIME, length)
    }
    assert sequences == expected
    np.testing.assert_array_equal(split.target, split.action)  # all fields move together
    rows = np.asarray(batch.observation.obs).reshape(TIME * COPIES, SPEC.agents, SPEC.obs)
    np.testing.assert_array_equal(split.observation.obs, rows[steps])


def test_minibatches_are_shuffled_anew():
    shuffles = [
        np.asarray(minibatches(random_batch(), 2, 1, jax.random.key(key)).target)
        for key in range(2)
    ]
    assert (shuffles[0] != shuffles[1]).any()


# --- The target critic --------------------------------------------------------------------------


def first_weight(critic) -> np.ndarray:
    return np.asarray(critic.body.net.head.layers[0].weight)


def after_update(algorithm, learner, number):
    """The learner after one more update, in which the critic's parameters became `number`."""
    critic = jax.tree.map(lambda x: jnp.full_like(x, number), learner.critic)
    learner = replace(learner, critic=critic, updates=learner.updates + 1)
    return replace(learner, target=algorithm.next_target(learner))


def test_a_hard_target_is_renewed_now_and_then():
    algorithm, learner = learner_of(small(target=Hard(target_update_interval=3)))
    initial, held = first_weight(learner.target), []
    for number in range(1, 8):
        learner = after_update(algorithm, learner, number)
        held.append(first_weight(learner.target))
    for early in held[:2]:
        np.testing.assert_array_equal(early, initial)
    assert [target.flat[0] for target in held[2:]] == [3, 3, 3, 6, 6]


def test_a_soft_target_is_the_average_of_the_critics_then_moves_by_tau():
    algorithm, learner = learner_of(small(target=Soft(target_update_tau=0.25)))
    held = []
    for number in (8.0, 2.0, 5.0, 1.0, 12.0):
        learner = after_update(algorithm, learner, number)
        held.append(first_weight(learner.target))
    averages = [8.0, 5.0, 5.0, 4.0]  # of the first four critics; the random one is forgotten
    for target, expected in zip(held, [*averages, 0.75 * 4.0 + 0.25 * 12.0], strict=True):
        np.testing.assert_allclose(target, expected, rtol=1e-5)


def test_without_a_target_the_critic_is_its_own():
    algorithm, learner = learner_of(small())
    assert (first_weight(after_update(algorithm, learner, 8.0).target) == 8).all()


# --- Whole updates ------------------------------------------------------------------------------


def collect(world, algorithm, learner, key=1):
    """What a learner's actor does on the world in one horizon."""
    config = algorithm.config
    copies = AutoReset(world, config.num_envs)

    @jax.jit
    def run(actor, key):
        scene = begin(copies, actor, key)
        length = config.length(world.spec.limit)
        return rollout(
            copies, actor, scene, key, length, whole_episodes=config.rollout_length is None
        )

    _, trajectory, tally = run(learner.actor, jax.random.key(key))
    return trajectory, tally


@pytest.fixture(scope="module")
def decaying():
    """An update at three moments of the run, with rates that fall."""
    config = make(
        "ippo",
        num_envs=4,
        rollout_length=3,
        hidden_size=8,
        init="torch",
        update_epochs=1,
        anneal_lr=True,
    )
    algorithm, learner = learner_of(config, probes.TOGETHER.spec)
    trajectory, _ = collect(probes.TOGETHER, algorithm, learner)
    update = jax.jit(algorithm.update)
    return learner, {
        progress: update(learner, trajectory, jax.random.key(2), jnp.float32(progress))[0]
        for progress in (0.0, 0.5, 1.0)
    }


def test_learning_rates_fall_linearly_to_zero(decaying):
    before, after = decaying
    for network in ("actor", "critic"):
        old = jax.tree.leaves(getattr(before, network))
        whole, half, none = (jax.tree.leaves(getattr(after[p], network)) for p in (0.0, 0.5, 1.0))
        assert any((w != o).any() for w, o in zip(whole, old, strict=True))
        for o, w, h, n in zip(old, whole, half, none, strict=True):
            np.testing.assert_allclose(h - o, (w - o) / 2, atol=1e-6)
            np.testing.assert_array_equal(n, o)


@pytest.mark.parametrize(
    ("progress", "rate", "entropy"), [(0.0, 1.0, 0.3), (0.5, 0.5, 0.2), (1.0, 0.0, 0.1)]
)
def test_schedules_follow_the_progress_of_the_run(progress, rate, entropy):
    algorithm = ppo.Algorithm(small(anneal_lr=True, ent_coef=0.3, ent_coef_final=0.1), SPEC)
    schedule = algorithm.schedule(algorithm.init(jax.random.key(0)), jnp.float32(progress))
    assert schedule.rate == pytest.approx(rate)
    assert schedule.entropy == pytest.approx(entropy)


@pytest.mark.parametrize("progress", [0.0, 0.7, 1.0])
def test_what_has_no_schedule_stays(progress):
    algorithm = ppo.Algorithm(small(ent_coef=0.3), SPEC)
    schedule = algorithm.schedule(algorithm.init(jax.random.key(0)), jnp.float32(progress))
    assert schedule.rate == 1
    assert schedule.entropy == pytest.approx(0.3)


class Fickle:
    """A world whose episodes end whenever they like, after five steps at the latest."""

    spec = Spec("fickle", 2, 2, 3, (3, 3), 5, "common")

    class State(NamedTuple):
        time: jax.Array
        seen: jax.Array

    def reset(self, key):
        state = self.State(jnp.int32(0), jax.random.normal(key, (2, 2)))
        return state, self.see(state)

    def step(self, key, state, action):
        key_end, key_see = jax.random.split(key)
        state = self.State(state.time + 1, jax.random.normal(key_see, (2, 2)))
        terminated = jax.random.bernoulli(key_end, 0.3)
        truncated = ~terminated & (state.time == 5)
        reward = jnp.full(2, state.seen.sum() + action.sum())
        return state, TimeStep(self.see(state), reward, terminated, truncated, self.see(state))

    def render(self, state):
        raise AssertionError("nothing draws this world")

    def see(self, state):
        avail = jnp.ones((2, 3), bool)
        return Observation(state.seen, jnp.append(state.seen[0], state.time.astype(float)), avail)


@pytest.fixture(scope="module")
def whole_episodes():
    config = make(
        "perla-mappo", num_envs=12, rollout_length=None, hidden_size=8, num_layers=1,
        critic_num_layers=1, update_epochs=1, actor_network="gru", critic_network="gru",
        returns=NStep(n_step=3), target=Soft(), normalize_rewards=True, normalize_values=True,
        init="torch",
    )  # fmt: skip
    algorithm, learner = learner_of(config, Fickle.spec)
    return algorithm, learner, *collect(Fickle(), algorithm, learner)


def test_whole_episodes_count_their_own_steps(whole_episodes):
    _, _, trajectory, tally = whole_episodes
    ended = np.asarray(trajectory.terminated | trajectory.truncated)
    lengths = ended.argmax(0) + 1
    assert ended.any(0).all()
    assert len(set(lengths)) > 1
    np.testing.assert_array_equal(np.asarray(trajectory.valid).sum(0), lengths)
    assert tally.steps == lengths.sum()
    assert tally.episodes == len(lengths)
    returns = [np.asarray(trajectory.reward)[:n, c, 0].sum() for c, n in enumerate(lengths)]
    assert tally.returns == pytest.approx(sum(returns), rel=1e-4)


def test_padding_is_not_learnt_from(whole_episodes):
    algorithm, learner, trajectory, _ = whole_episodes
    padded = ~trajectory.valid
    assert padded.any()

    def disturb(x):
        mask = padded.reshape(padded.shape + (1,) * (x.ndim - 2))
        if x.dtype == bool:
            return x
        return jnp.where(mask, (x + 1) % 3 if x.dtype == jnp.int32 else 3 - 2 * x, x)

    fixed_fields = trajectory._replace(last=None, last_hidden_state=None)
    disturbed = jax.tree.map(
        lambda x: disturb(x) if x.shape[:2] == padded.shape else x, fixed_fields
    )._replace(
        last=Observation(trajectory.last.obs + 9, trajectory.last.state - 9, trajectory.last.avail),
        last_hidden_state=trajectory.last_hidden_state + padded[-1][:, None, None],
    )
    assert (disturbed.reward != trajectory.reward).any()
    update = jax.jit(algorithm.update)
    ours, theirs = (
        update(learner, t, jax.random.key(3), jnp.float32(0.0))[0] for t in (trajectory, disturbed)
    )
    initial_state = {
        "critic_hidden_state": learner.critic_hidden_state
    }  # whole episodes begin without it
    assert eqx.tree_equal(replace(ours, **initial_state), replace(theirs, **initial_state))
    assert not eqx.tree_equal(ours.actor, learner.actor)


# --- Settings that do not fit -------------------------------------------------------------------

MISFITS = {
    "bptt_length = 4: must divide": {
        "critic_network": "gru", "rollout_length": 10, "bptt_length": 4},
    "num_minibatches = 2: must divide the 15": {
        "actor_network": "mlp", "num_envs": 3, "rollout_length": 5, "num_minibatches": 2},
    "num_minibatches = 4: must divide the 3": {
        "actor_network": "gru", "num_envs": 3, "rollout_length": 4, "num_minibatches": 4},
}  # fmt: skip


@pytest.mark.parametrize(("message", "settings"), MISFITS.items(), ids=MISFITS.keys())
def test_numbers_that_do_not_divide_are_refused_in_one_line(message, settings):
    with pytest.raises(UserError, match=message) as refusal:
        ppo.Algorithm(PPO(**settings), SPEC)
    assert "\n" not in str(refusal.value)


def test_whole_episodes_need_a_limit():
    with pytest.raises(UserError, match="have no limit"):
        ppo.Algorithm(PPO(rollout_length=None), Spec("endless", 1, 1, 1, (2,), None, "common"))


def test_a_bptt_length_without_a_gru_is_refused():
    with pytest.raises(UserError, match="bptt_length = 4: only a GRU"):
        make("ippo", actor_network="mlp", bptt_length=4)
