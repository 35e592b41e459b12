"""Recorded episodes: those that the run was measured by, and as the environment plays them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import host_envs
import perla
from marks import slow
from perla.algos.create import create
from perla.algos.protocol import HasCritic
from perla.distributions import Gaussian
from perla.envs import render
from perla.loops.evaluate import evaluate
from perla.loops.record import record, record_host
from perla.methods.recipes import make
from perla.report.replays import caption, replay
from perla.runs import execute, recordings
from perla.runs.recordings import Episode, record_run
from perla.runs.spec import Run
from report_runs import made_up

KEY = jax.random.key(3)
FORAGING = "lbf:Foraging-5x5-2p-1f-v2"
SMALL = {"num_envs": 2, "hidden_size": 8}
GREEDY = jnp.arange(6) < 3


def untrained(algo, env, **settings):
    """A learner with its first parameters, and its algorithm."""
    algorithm = create(make(algo, **SMALL | settings), env.spec)
    return algorithm, algorithm.init(KEY)


@pytest.fixture(scope="module")
def foraging():
    """The environment, an actor, and the results of six episodes, of which three are sampled."""
    env = perla.make(FORAGING)
    _, learner = untrained("ippo", env)
    return env, learner.actor, jax.jit(evaluate, static_argnums=0)(env, learner.actor, KEY, GREEDY)


@pytest.mark.parametrize("number", [0, 4])
def test_a_recorded_episode_is_the_one_that_is_evaluated(foraging, number):
    env, actor, results = foraging
    recording = record(env, actor, KEY, GREEDY, number)
    assert len(recording.rewards) == results.lengths[number]
    assert recording.rewards.sum() == pytest.approx(float(results.returns[number]), abs=1e-6)
    greedy = recording.trajectory.policy.mode() == recording.trajectory.action
    assert greedy.all() == (number < 3)


def test_frames_agree_with_the_environment_stepped_from_the_recorded_actions(foraging):
    env, actor, _ = foraging
    recording = record(env, actor, KEY, GREEDY, 4)
    run = Run(env=FORAGING, algo="ippo", config=make("ippo", **SMALL), steps=100)
    shown = replay(Episode(run, env, 0, recording, None, np.zeros(3)))
    state, step = recording.states[0], jax.jit(env.step)
    assert len(shown["frames"]) == len(shown["steps"]) + 1
    for frame, made in zip(shown["frames"][1:], shown["steps"], strict=True):
        state, timestep = step(KEY, state, jnp.array(made["a"]))  # Foraging is deterministic.
        scene = env.scene(state)
        now = shown["fixed"] | frame
        assert now["agents"] == scene.agents
        assert now["foods"] == scene.foods
    assert timestep.terminated | timestep.truncated


def test_the_marginal_is_the_average_over_the_others_policies():
    env = perla.make("matrix:climbing-t25")
    algorithm, learner = untrained("perla-mappo", env)
    trajectory = record(env, learner.actor, KEY, GREEDY, 4).trajectory
    values = algorithm.critic_values(learner, trajectory, KEY)
    hidden_state = learner.critic.body.initial_state((1,))
    context, _ = learner.critic.context(trajectory.observation, hidden_state, trajectory.is_first)
    probs = trajectory.policy.probs[0, 0]

    def value(first, second):
        return learner.critic.joint(context, jnp.full((25, 1, 2), jnp.array([first, second])))[0, 0]

    by_hand = [
        sum(probs[1, a] * value(0, a)[0, 0] for a in range(3)),
        sum(probs[0, a] * value(a, 0)[1, 0] for a in range(3)),
    ]
    np.testing.assert_allclose(values.marginal[0, 0], by_hand, rtol=1e-5)
    taken = value(*trajectory.action[0, 0])[:, 0]
    np.testing.assert_allclose(values.value[0, 0], taken, rtol=1e-5)


@pytest.mark.parametrize("algo", ["ippo", *slow("coma", "mat", "maddpg")])
def test_other_critics_have_values_and_no_marginal(algo):
    env = perla.make("matrix:climbing-t25")
    algorithm, learner = untrained(algo, env)
    values = algorithm.critic_values(
        learner, record(env, learner.actor, KEY, GREEDY, 0).trajectory, KEY
    )
    assert isinstance(algorithm, HasCritic)
    assert values.value.shape == (25, 1, 2)
    assert np.isfinite(values.value).all()
    assert values.marginal is None


def test_q_learners_show_the_utilities_of_their_actions():
    env = perla.make("matrix:climbing-t25")
    _, learner = untrained("vdn", env)
    recording = record(env, learner.actor, KEY, GREEDY, 0)
    run = Run(env="matrix:climbing-t25", algo="vdn", config=make("vdn", **SMALL), steps=100)
    shown = replay(Episode(run, env, 0, recording, None, np.zeros(3)))
    assert shown["values"] == "utility"
    np.testing.assert_allclose(np.sum([step["p"] for step in shown["steps"]], -1), 1, atol=1e-3)
    for step in shown["steps"]:
        for action, value, utilities in zip(step["a"], step["v"], step["q"], strict=True):
            assert value == max(utilities) == utilities[action]


def test_a_host_environment_is_shown_in_pictures():
    class Actor:
        def initial_state(self, batch):
            return jnp.zeros((*batch, 1, 0))

        def update_state(self, hidden_state, action):
            return hidden_state

        def __call__(self, observation, hidden_state, is_first, key=None):
            mean = jnp.full((1, 2), 0.25)
            policy = Gaussian.masked(mean, jnp.ones((1, 2)), observation.avail, None)
            return policy, hidden_state

    env = host_envs.Echo()
    recording = record_host(env, Actor(), KEY)
    assert len(recording.states) == 5
    np.testing.assert_allclose(recording.states[1:], recording.trajectory.action[:, 0])
    np.testing.assert_allclose(recording.rewards, 0.5)
    np.testing.assert_allclose(recording.trajectory.action, 0.25)


def test_skirmish_is_drawn_from_its_scene():
    env = perla.make("skirmish:3m")
    state, _ = env.reset(KEY)
    scene = env.scene(state)
    assert [fighter.enemy for fighter in scene.fighters] == [False] * 3 + [True] * 3
    np.testing.assert_array_equal(render.draw_field(*scene), env.render(state))
    assert len(env.action_names) == env.spec.max_actions


# --- Of a run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    """A run that has not begun, its environment and trainer, and its seeds' absolute metrics."""
    schedule = {"num_evaluations": 1, "eval_episodes": 2, "absolute_episodes": 5}
    config = make("ippo", **SMALL)
    run = Run(env=FORAGING, algo="ippo", config=config, steps=200, seeds=(0, 4), **schedule)
    env, trainer = execute.build(run)
    population = trainer.init()
    metrics = trainer.absolute(population, 5)
    return run, env, trainer, trainer.export(population), metrics


@pytest.mark.parametrize("seed", [0, 4])
def test_a_replay_has_the_return_that_the_run_says(measured, seed):
    run, env, trainer, exported, metrics = measured
    returns, recording = recordings.median_episode(run, env, trainer, exported, seed)
    assert len(returns) == 5
    assert returns.mean() == pytest.approx(metrics[run.seeds.index(seed)]["return"], abs=1e-7)
    assert returns[recording.number] == np.sort(returns)[2]
    episode = Episode(run, env, seed, recording, None, returns)
    assert replay(episode)["return"] == pytest.approx(float(np.sort(returns)[2]), abs=1e-6)
    assert f"{returns.mean():.4g}" in caption(episode)


def test_an_episode_that_is_too_long_is_refused(measured, monkeypatch, tmp_path):
    run, env, trainer, exported, _ = measured
    monkeypatch.setattr(recordings, "MOST_FRAMES", 10)
    monkeypatch.setattr(execute, "load", lambda *_, **__: (run, env, trainer, exported))
    made_up(tmp_path / "run", "ippo", env=FORAGING)
    with pytest.raises(perla.UserError, match="episodes of up to 50 steps; at most 10"):
        record_run(tmp_path / "run")
