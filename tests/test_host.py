"""Training in worlds of the host: the same learner, the whole way through `perla train`."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import host_envs
import perla
import probes
from perla.algos import ppo
from perla.cli import main
from perla.envs import registry
from perla.loops.evaluate import episode_limit
from perla.loops.host import Trainer
from perla.loops.host_envs import stack_trees
from perla.loops.host_rollout import rollout
from perla.methods.recipes import make as make_config
from perla.runs import execute

pytestmark = pytest.mark.xdist_group("host")

SMALL = probes.PLAIN | {
    "num_envs": 5, "rollout_length": 6, "hidden_size": 16, "lr": 1e-2, "init": "torch",
    "gamma": probes.GAMMA,
}  # fmt: skip
TRAIN = [
    *(
        "perla-mappo",
        "--env",
        "tiny:patience",
        "--gamma",
        "0.5",
        "--num-envs",
        "16",
        "--rollout-length",
        "6",
    ),
    *(
        "--hidden-size",
        "16",
        "--lr",
        "1e-2",
        "--actor-network",
        "mlp",
        "--num-layers",
        "2",
        "--init",
        "torch",
    ),
    *(
        "--normalize-advantages",
        "--no-normalize-rewards",
        "--ent-coef-final",
        "none",
        "--anneal-lr",
    ),
    *("--eval-episodes", "8", "--absolute-episodes", "8"),
]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A family of worlds called `tiny`."""
    monkeypatch.setenv("PERLA_CORES", "2")
    with registry.FAMILIES.added("tiny", host_envs):
        yield


@pytest.fixture
def trainer():
    """Makes trainers, and closes them."""
    made = []

    def build(algo="ippo", seeds=(0,), steps=600, workers=2, say=lambda text: None, world=None,
              **settings):  # fmt: skip
        factory = partial(host_envs.make_env, "patience", **(world or {}))
        config = make_config(algo, **(SMALL if algo == "ippo" else {}) | settings)
        made.append(
            Trainer(factory(), factory, config, seeds=seeds, steps=steps, eval_episodes=4,
                    workers=workers, say=say)
        )  # fmt: skip
        return made[-1]

    yield build
    for one in made:
        one.close()


def rolled_out(trainer, population, key):
    """A rollout of the only seed."""
    actor = population[0].learner.actor
    actors, keys = stack_trees([(actor, key)])
    (result,) = rollout(
        trainer._envs[0], actors, keys, np.array([True]), trainer._empty_trajectory(actor),
        whole_episodes=False,
    )  # fmt: skip
    return result


def leaves(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.slow
def test_train_reaches_the_known_values(tmp_path):
    out = tmp_path / "run"
    assert (
        main(["train", *TRAIN, "--steps", "14400", "--num-evaluations", "1", "--out", str(out)])
        == 0
    )
    run, env, trainer, exported = execute.load(out)
    learner = jax.tree.map(lambda x: jnp.asarray(x[0]), exported.learner)
    for (time, signs), known in probes.PATIENCE.known.items():
        env.signs, env.time = np.array(signs, float), time
        seen = jax.tree.map(
            lambda x: jnp.asarray(x, bool if x.dtype == bool else jnp.float32), env._see()
        )
        # As in a worker, where nobody has loaded JAX.
        seen = seen._replace(state=seen.state.at[-1].set(0.0))
        policy, _ = learner.actor(seen, learner.actor.initial_state(()), jnp.array(True))
        now = jax.tree.map(lambda x: x[None], seen)
        context, _ = learner.critic.context(
            now, learner.critic.body.initial_state(()), jnp.array([True])
        )
        algorithm = ppo.Algorithm(run.config, env.spec)
        value = algorithm.value.estimate(learner.critic, context[0], policy, jax.random.key(0))
        worth = algorithm.scale(learner).restore(value.value)
        np.testing.assert_allclose(worth, known, atol=0.1)
        if time == 2:
            best = policy.probs[jnp.arange(2), jnp.array(probes.PATIENCE.best(signs))]
            assert (best > 0.9).all()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["seeds"][0]["absolute"]["return"] == 1.0
    assert summary["seeds"][0]["absolute"]["episode_length"] == 3.0
    assert (out / "replay.gif").exists()
    trainer.close()
    # What was trained can be looked at.
    assert main(["evaluate", str(out), "--episodes", "5"]) == 0
    assert main(["render", str(out), "--out", str(tmp_path / "film.png")]) == 0


def test_neither_processes_nor_company_change_a_number(trainer):
    alone = trainer(workers=1, seeds=(3,))
    among = trainer(workers=2, seeds=(0, 3))
    ends = []
    for one in (alone, among):
        population, rows = one.advance(one.init(), 90)
        assert rows[-1]["step"] == 90
        ends.append((leaves(one.export(population[-1:])), rows[-1]))
    assert ends[0] == ends[1]


def test_steps_are_transitions_counted_once(trainer):
    one = trainer()
    population, rows = one.advance(one.init(), 1)
    assert rows[0]["step"] == 5 * 6
    assert one.template().steps.shape == (1,)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), one.template())
    exported = one.export(population)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), exported) == shapes
    assert leaves(one.export(one.restore(exported))) == leaves(exported)


def test_whole_episodes_are_collected_once_each(trainer):
    one = trainer(
        "qmix", num_envs=4, rollout_length=None, buffer_size=8, batch_size=4, hidden_size=8
    )
    _, rows = one.advance(one.init(), 24)
    assert rows[0]["step"] == 24  # two episodes of three steps in each of four copies


def test_a_rollout_is_what_the_world_gives(trainer):
    one = trainer()
    population = one.init()
    seen, stats = rolled_out(one, population, jax.random.key(7))
    again, _ = rolled_out(one, population, jax.random.key(8))
    np.testing.assert_array_equal(seen.is_first, np.arange(6)[:, None].repeat(5, 1) % 3 == 0)
    np.testing.assert_array_equal(seen.terminated, np.arange(6)[:, None].repeat(5, 1) % 3 == 2)
    assert seen.valid.all()
    assert stats.steps == 30
    assert len(stats.episode_returns) == 10
    signs = seen.observation.state[..., :2]
    won = ((2 * seen.action - 1 == signs).all(-1) & seen.terminated)[..., None]
    np.testing.assert_array_equal(seen.reward, np.broadcast_to(won, (6, 5, 2)))
    np.testing.assert_array_equal(seen.observation.obs[..., 1], np.arange(6).reshape(6, 1, 1) % 3
                                  * np.ones((6, 5, 2)))  # fmt: skip
    going = ~seen.terminated[:-1]
    np.testing.assert_array_equal(seen.final.obs[:-1][going], seen.observation.obs[1:][going])
    np.testing.assert_array_equal(seen.final.obs[..., 0], seen.observation.obs[..., 0])
    np.testing.assert_array_equal(seen.last.obs, again.observation.obs[0])
    assert seen.last_is_first.all()


def test_a_dropped_episode_is_neither_learnt_from_nor_counted(trainer, tmp_path):
    trigger, said = tmp_path / "trigger", []
    one = trainer(world={"fault": "nan", "trigger": str(trigger)}, say=said.append)
    population = one.init()
    trigger.touch()
    seen, stats = rolled_out(one, population, jax.random.key(7))
    assert len(said) == 1
    (copy,) = np.nonzero(~seen.valid.all(0))[0]
    np.testing.assert_array_equal(seen.valid[:, copy], [False, False, True, True, True, True])
    np.testing.assert_array_equal(seen.is_first[:, copy], [True, False, True, False, False, True])
    assert stats.steps == 28
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(seen) if leaf.dtype != bool)
    # Whatever stands where the episode was dropped, the learner comes out the same.
    marred = seen._replace(
        reward=np.where(seen.valid[..., None], seen.reward, 1e3).astype(np.float32),
        action=np.where(seen.valid[..., None], seen.action, 1 - seen.action),
    )
    (state,), rest = population, (jax.random.key(1), np.float32(0.5), np.float32(0.0), np.int32(0))
    clean, interval, _ = one._update(state, seen, *rest)
    assert all(np.isfinite(value) for value in interval.metrics.values())
    assert leaves(clean.actor) != leaves(state.learner.actor)
    unmoved, *_ = one._update(state, marred, *rest)
    assert leaves(unmoved) == leaves(clean)


def test_with_nothing_to_learn_from_nothing_breaks(trainer):
    one = trainer()
    (state,) = one.init()
    empty = one._empty_trajectory(state.learner.actor)
    empty = empty._replace(valid=np.zeros_like(empty.valid))
    zero = np.float32(0.0)
    improved, interval, _ = one._update(state, empty, jax.random.key(1), zero, zero, np.int32(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(improved))
    assert all(np.isfinite(value) for value in interval.metrics.values())


def test_a_finite_reward_that_breaks_the_learner_is_found_and_named(trainer, tmp_path):
    """The pool lets 1e30 through, since it is finite; its square is not, in 32 bits."""
    trigger, messages = tmp_path / "trigger", []
    options = {"fault": "huge reward", "trigger": str(trigger)}
    one = trainer(seeds=(0, 3), world=options, say=messages.append)
    population = one.init()
    trigger.touch()
    population, _ = one.advance(population, 90)
    assert messages == []
    faults = [fault for fault in one.faults(population) if fault is not None]
    assert len(faults) == 1, "one environment of one seed has the fault"
    assert faults[0].array.startswith(("the learner's ", "metric "))
    assert faults[0].step == 30
    assert "1e+30" in str(faults[0])
    assert sorted(int(state.steps) for state in population) == [30, 90]
    for state in population:
        actor = [leaf for leaf in jax.tree.leaves(state.best_actor) if leaf.dtype == np.float32]
        assert all(np.isfinite(leaf).all() for leaf in actor)


def test_evaluations_play_every_episode_once_and_to_its_end(trainer, tmp_path):
    trigger, said = tmp_path / "trigger", []
    one = trainer(world={"fault": "raise", "trigger": str(trigger)}, say=said.append)
    population = one.init()
    trigger.touch()
    greedy = np.arange(21) < 11
    played = one.play(population[0].learner.actor, jax.random.key(0), greedy)
    assert len(said) == 1
    np.testing.assert_array_equal(played.lengths, 3)
    assert set(np.unique(played.returns)) <= {0.0, 1.0}
    assert episode_limit(one.env) == 3


def test_no_more_worlds_are_held_than_are_asked_for(trainer, monkeypatch):
    held = []
    monkeypatch.setattr(host_envs.Patience, "reset", lambda env, seed, reset=(
        host_envs.Patience.reset): held.append(env) or reset(env, seed))  # fmt: skip
    monkeypatch.setattr(host_envs.Patience, "close", lambda env: held.remove(env))
    one = trainer(num_envs=2)
    one.init()
    assert [len(copies) for copies in one._pool.ranges] == [1, 1, 1, 1]
    assert held == []
    monkeypatch.undo()


@pytest.mark.slow
def test_killed_and_resumed_the_learner_goes_on(tmp_path):
    """The process is killed outright in the middle; what it left goes on to the same schedule."""
    out, script = tmp_path / "run", tmp_path / "start.py"
    script.write_text(
        "import sys\n"
        "if __name__ == '__main__':\n"
        "    from perla.cli import main\n"
        "    import host_envs, perla\n"
        "    perla.register_environment('tiny', host_envs)\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    settings = ["--steps", "1920", "--num-evaluations", "20", "--checkpoint-seconds", "0"]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(script), "train", *TRAIN, *settings, "--out", str(out)],
        env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 288/"):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=120)
    before = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    heard = []
    display = execute.Silent()
    display.say = heard.append
    result = execute.resume(out, display=display)
    assert any("the environments in new episodes" in line for line in heard)
    steps = [record["step"] for record in result.records]
    assert steps == [96 * i for i in range(21)]
    assert result.records[: len(before) - 1] == before[:-1]


def test_dropped_episodes_are_counted(tmp_path):
    trigger = tmp_path / "trigger"
    trigger.touch()
    result = perla.train(
        "tiny:patience", "ippo", steps=96, seeds=2, num_evaluations=2, eval_episodes=2,
        absolute_episodes=2, num_envs=4, rollout_length=6, hidden_size=4, actor_network="mlp",
        env_options={"fault": "raise", "trigger": str(trigger)}, out=tmp_path / "run",
    )  # fmt: skip
    assert not trigger.exists()
    recorded = dict.fromkeys((0, 1), 0)
    for record in result.records:
        recorded[record["seed"]] += record["dropped_episodes"]
    assert sum(recorded.values()) == 1
    assert result.dropped_episodes == recorded
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [entry["dropped_episodes"] for entry in summary["seeds"]] == list(recorded.values())
    assert "dropped_episodes" not in result.summary["seeds"][0]["final"]
