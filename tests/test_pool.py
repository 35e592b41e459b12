"""The pool of environments: it equals stepping each alone, and survives faults."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import host_envs
from marks import slow
from perla.envs.processes import pool as pools
from perla.envs.processes.pool import Pool, first_observation
from perla.envs.processes.worker import Share, SharedArrays, WorkerEnvs
from perla.envs.protocol import HostEnv
from perla.errors import UserError

GROUPS = {"left": 3, "right": 2}
ENTROPY = {0: [(5, 6), (5, 7), (8,)], 1: [(7,), (9, 9, 9)]}

pytestmark = pytest.mark.xdist_group("pool")


def make_factory(**options):
    return partial(host_envs.make_env, "patience", **options)


@pytest.fixture
def pool():
    """Make pools, and close them."""
    made = []

    def build(said=None, workers=2, step_seconds=60.0, restarts=10, **options):
        factory = make_factory(**options)
        say = (lambda text: None) if said is None else said.append
        made.append(
            Pool(
                factory, factory().spec,
                [[f"{name}, copy {copy}" for copy in range(n)] for name, n in GROUPS.items()],
                workers=workers, step_seconds=step_seconds, restarts=restarts, say=say,
            )
        )  # fmt: skip
        return made[-1]

    yield build
    for one in made:
        one.close()


def begin(pool):
    """The first observations of both groups."""
    for group in range(2):
        pool.reset(group, ENTROPY[group])
    return [pool.receive(group)[0].observation for group in range(2)]


def actions(step, group, copies):
    return np.random.default_rng((step, group)).integers(0, 2, (copies, 2)).astype(np.int32)


def play(pool, steps):
    """The results of so many steps, in which one group is stepped while the other waits."""
    seen = []
    for step in range(steps):
        for group, copies in enumerate(GROUPS.values()):
            pool.step(group, actions(step, group, copies))
        seen += [pool.receive(group) for group in range(2)]
    return seen


def serial(steps, **options):
    """The same without a pool, one environment at a time."""
    envs = {
        (g, c): make_factory(**options)() for g, n in enumerate(GROUPS.values()) for c in range(n)
    }
    episodes = dict.fromkeys(envs, 0)

    def begin(which):
        group, copy = which
        chance = np.random.SeedSequence(ENTROPY[group][copy], spawn_key=(episodes[which],))
        episodes[which] += 1
        return envs[which].reset(int(chance.generate_state(1)[0]) >> 1)

    starts = [[begin(which) for which in envs if which[0] == group] for group in range(len(GROUPS))]
    outcomes = []
    for step in range(steps):
        for group, copies in enumerate(GROUPS.values()):
            row = []
            for copy, action in enumerate(actions(step, group, copies)):
                timestep = envs[group, copy].step(action)
                if timestep.terminated or timestep.truncated:
                    timestep = timestep._replace(observation=begin((group, copy)))
                row.append(timestep)
            outcomes.append(row)
    return starts, outcomes


def same(batch, rows):
    for name in ("obs", "state", "avail"):
        want = np.stack([getattr(row, name) for row in rows])
        have = getattr(batch, name)
        if name == "state":  # whose last entry says whether JAX is loaded
            assert not have[:, -1].any(), "a worker has imported JAX"
            have, want = have[:, :-1], want[:, :-1]
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("end", ["terminated", "truncated"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_pool_is_its_copies_stepped_one_by_one_to_the_bit(pool, end, workers):
    many = pool(end=end, workers=workers)
    assert isinstance(make_factory()(), HostEnv)
    starts, outcomes = serial(8, end=end)
    for have, want in zip(begin(many), starts, strict=True):
        same(have, want)
    for (timestep, lost), rows in zip(play(many, 8), outcomes, strict=True):
        assert not lost.any()
        same(timestep.observation, [row.observation for row in rows])
        same(timestep.final, [row.final for row in rows])
        for name in ("reward", "terminated", "truncated"):
            want = np.stack([getattr(row, name) for row in rows])
            np.testing.assert_array_equal(getattr(timestep, name), want)


def test_copies_that_are_not_active_stand_still(pool):
    many = pool()
    before = begin(many)[0]
    many.step(0, np.zeros((3, 2), np.int32), np.array([True, False, True]))
    after = many.receive(0)[0].observation
    np.testing.assert_array_equal(after.obs[:, 0, 1], [1, 0, 1])
    np.testing.assert_array_equal(after.obs[1], before.obs[1])


FAULTS = {
    "raise": "RuntimeError: the engine has stalled",
    "nan": "`obs` holds numbers that are not finite",
    "infinite reward": "`reward` holds numbers that are not finite",
    "size": r"`obs` has shape \(2, 1\), expected \(2, 2\)",
    "apart": "`obs` differs between `observation` and `final`",
    "no action": "`avail` leaves agent 0 no action",
    "endless": "not truncated after 3 steps, although spec.limit is 3",
    "early": "truncated after 2 of 3 steps; spec.early_truncation is False",
    "complex": "`obs` is of complex128, expected real numbers",
    "nan mask": "`avail` holds nan, expected booleans, or 0 and 1",
    "no flag": "`terminated` is a dict, expected booleans",
    "kill": "its process was killed by SIGKILL",
    "exit": "SystemExit: 3",
    "hang": "no answer within 2 s, so its process was killed",
    "reset": "ValueError: no game today",
}
WHOLE = ("kill", "exit", "hang")
"""Faults that end a process, and so the episodes of all its environments."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_costs_its_episodes_alone(pool, tmp_path, fault):
    trigger, said = tmp_path / "trigger", []
    many = pool(said, fault=fault, trigger=str(trigger), step_seconds=2.0)
    begin(many)
    play(many, 3)  # one whole episode without
    trigger.touch()
    began = time.monotonic()
    faulty, healthy = play(many, 3), play(many, 6)
    assert time.monotonic() - began < 60
    (line,) = said
    assert "\n" not in line
    step = 0 if fault == "reset" else 3 if fault == "endless" else 2
    pattern = rf"tiny:patience, (left|right), copy \d, step {step}(, worker \d)?: .*{FAULTS[fault]}"
    assert re.match(pattern, line), line
    lost = np.array([lost.sum() for _, lost in faulty]).sum()
    if fault in WHOLE:
        assert 2 <= lost <= 3  # the copies of one of two workers
    else:
        assert lost == 1
    for timestep, gone in faulty:
        assert np.isfinite(timestep.final.obs).all()
        assert np.isfinite(timestep.observation.obs).all()
        assert (timestep.reward[gone] == 0).all()
        assert (timestep.observation.obs[gone][:, :, 1] == 0).all()  # another episode's first
    assert not any(gone.any() for _, gone in healthy)
    ends = sum(timestep.terminated.sum() for timestep, _ in healthy)
    assert ends == 2 * 5  # all copies go on: an episode every three steps


def test_a_truncation_before_the_limit_is_none_of_the_faults(pool):
    said = []
    many = pool(said, fault="early", trigger="always", promise=False)
    begin(many)
    for number, (timestep, lost) in enumerate(play(many, 4)):
        assert not lost.any()
        second = number // 2 % 2 == 1
        assert timestep.truncated.all() == timestep.truncated.any() == second
        assert not timestep.terminated.any()
        np.testing.assert_array_equal(timestep.final.obs[..., 1], 2 if second else 1)
        np.testing.assert_array_equal(timestep.observation.obs[..., 1], 0 if second else 1)
    assert not said


def test_seeds_have_31_bits(pool, monkeypatch):
    given = []
    spec = host_envs.Patience().spec
    envs = WorkerEnvs(
        host_envs.Patience, spec, SharedArrays(multiprocessing, spec, 64, 1, False),
        Share(0, {0: range(64)}, {0: 0}),
    )  # fmt: skip
    reset = host_envs.Patience.reset
    monkeypatch.setattr(
        host_envs.Patience, "reset", lambda env, seed: (given.append(seed), reset(env, seed))[1]
    )
    envs.begin(0, [(1, env) for env in range(64)])
    assert all(0 <= seed < 2**31 for seed in given)
    assert len(set(given)) == 64
    assert max(given) > 2**30


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("mistake", r"a worker process cannot begin an episode \(TypeError: no seed, please"),
        ("exit at once", r"a worker process cannot start \(ended with status 3\); what it printed"),
    ],
)
def test_a_worker_that_can_never_start_is_tried_once(pool, fault, message):
    said = []
    many = pool(said, fault=fault, trigger="always")
    with pytest.raises(UserError, match=f"tiny:patience: {message}"):
        begin(many)
    assert not said
    assert not many.faults


@pytest.mark.parametrize("fault", ["mistake", "exit at once"])
def test_a_worker_that_has_started_once_is_tried_again(pool, tmp_path, fault):
    said, trigger = [], tmp_path / "trigger"
    many = pool(said, fault=fault, trigger=str(trigger))
    begin(many)
    trigger.touch()
    play(many, 3)
    assert len(said) == 1


def test_a_function_of_the_main_module_is_sent_by_value():
    code = (
        "import host_envs\n"
        "from perla.envs.processes.pool import Pool\n"
        "class Own(host_envs.Patience): pass\n"
        "pool = Pool(lambda: Own(), Own().spec, [['one']])\n"
        "pool.reset(0, [(1,)])\n"
        "print(pool.receive(0)[0].observation.obs.shape)\n"
        "pool.close()\n"
    )
    assert run_program("-c", code, status=0).startswith("(1, ")


def test_an_object_that_cannot_be_sent_is_told_in_a_line():
    lock = threading.Lock()
    with pytest.raises(UserError, match=r"cannot be sent to a worker process .*hand over a func"):
        Pool(lambda: host_envs.Patience() or lock, host_envs.Patience().spec, [["one"]])


def test_a_script_without_a_guard_is_told_in_a_line(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import perla\n"
        "perla.train('host_envs:Patience', 'ippo', steps=8, num_envs=1, rollout_length=3,"
        " hidden_size=8, num_layers=1, num_evaluations=1, eval_episodes=1, out='run')\n"
    )
    told = run_program(str(script), cwd=tmp_path)
    assert "under `if __name__ == '__main__':`" in told.splitlines()[-1]
    assert told.count("Traceback") == 1


def run_program(*arguments, cwd=None, status=1):
    """What a program prints that ends with this status: on standard error, if it fails."""
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | {"PYTHONPATH": here}, cwd=cwd,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def test_a_process_killed_from_outside_is_started_again(pool):
    said = []
    many = pool(said)
    begin(many)
    os.kill(many.workers[1].process.pid, signal.SIGKILL)
    lost = [gone for _, gone in play(many, 1)]
    assert sum(gone.sum() for gone in lost) in (2, 3)
    assert "SIGKILL" in said[0]
    assert not any(gone.any() for _, gone in play(many, 3))


def test_after_a_fault_elsewhere_a_group_begins_as_it_would_have(pool):
    many = pool(workers=1)
    before = begin(many)[1]
    (worker,) = many.workers
    os.kill(worker.process.pid, signal.SIGKILL)
    many.step(0, actions(0, 0, 3))
    assert many.receive(0)[1].all()
    many.reset(1, ENTROPY[1])  # which the new process is about to be asked for anyway
    after, lost = many.receive(1)
    np.testing.assert_array_equal(after.observation.state, before.state)
    np.testing.assert_array_equal(many.arrays.episode[3:], 0)
    assert not lost.any()


@pytest.mark.parametrize("fault", ["raise", "kill", "reset"])
def test_beyond_the_bound_a_fault_ends_the_run_in_a_line(pool, fault):
    said = []
    many = pool(said, fault=fault, trigger="always", restarts=2)

    def go_on():
        begin(many)
        play(many, 12)

    with pytest.raises(
        UserError, match="fault 3 within 1,000 episodes, and the run ends here"
    ) as caught:
        go_on()
    assert len(said) == 2
    assert "\n" not in str(caught.value)


def test_the_bound_on_faults_is_a_rate(pool):
    said = []
    many = pool(said, restarts=2)
    for episodes in range(0, 10_000, 500):  # two in a thousand
        many.episodes = episodes
        many.fault("a mistake")
    assert len(said) == 20
    assert said[-1].endswith("(fault 2 within 1,000 episodes, of at most 2)")
    with pytest.raises(UserError, match="survives at most 2"):
        many.fault("one more")


def test_a_slow_start_is_no_hanging_step(pool):
    assert pools.START_SECONDS > 60
    many = pool(step_seconds=0.5)
    begin(many)  # spawning takes longer than half a second


def test_no_process_outlives_its_pool(pool):
    many = pool()
    begin(many)
    processes = [worker.process for worker in many.workers]
    pids = [process.pid for process in processes]
    many.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# --- Programs that environments have started ----------------------------------------------------


@pytest.fixture
def games(tmp_path):
    """Where games are written to, and whether any is still played."""
    path = tmp_path / "games"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def played(seconds=0.0):
        """Waits so long for the last one's end."""
        until = time.monotonic() + seconds
        while True:
            with suppress(BlockingIOError):
                return os.read(reader, 1) != b""
            if time.monotonic() > until:
                return True
            time.sleep(0.05)

    yield str(path), played
    os.close(reader)


def test_closing_waits_until_a_process_has_let_go_of_all_its_copies(pool, games):
    path, played = games
    many = pool(workers=1, game=path)
    begin(many)
    assert played()
    (worker,) = many.workers
    many.close()  # five copies, one after another
    assert not played()
    assert worker.process.exitcode == 0


@pytest.mark.parametrize("fault", ["kill", *slow("exit", "hang")])
def test_what_an_environment_has_started_ends_with_its_process(pool, games, tmp_path, fault):
    path, played = games
    trigger, said = tmp_path / "trigger", []
    many = pool(said, workers=1, game=path, fault=fault, trigger=str(trigger), step_seconds=2.0)
    begin(many)
    trigger.touch()
    (worker,) = many.workers
    began = worker._start
    worker._start = lambda: (goes_on.append(played(5.0)), began())
    goes_on = []
    play(many, 3)
    assert len(said) == 1
    assert goes_on == [False]


def test_where_no_episode_can_begin_a_process_lets_go_of_its_copies(pool, games):
    path, played = games
    many = pool(workers=1, game=path, fault="reset", trigger="always", restarts=0)
    with pytest.raises(UserError, match="no game today"):
        begin(many)
    assert not played()
    assert Path(f"{path}.ended").exists()


def test_what_an_environment_has_started_ends_with_whoever_trains(games, tmp_path):
    path, played = games
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, time\n"
        "from functools import partial\n"
        "import host_envs\n"
        "from perla.envs.processes.pool import Pool\n"
        "if __name__ == '__main__':\n"
        "    make = partial(host_envs.make_env, 'patience', game=sys.argv[1])\n"
        "    pool = Pool(make, host_envs.Patience().spec, [['one', 'other']], workers=2)\n"
        "    pool.reset(0, [(1,), (2,)])\n"
        "    pool.receive(0)\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(1000)\n"
    )
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    training = subprocess.Popen(
        [sys.executable, script, path], stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": here},
    )  # fmt: skip
    assert training.stdout.readline() == b"begun\n"
    assert played()
    training.kill()
    training.communicate()
    assert not played(10.0)


def test_an_environment_that_is_not_what_its_spec_says_is_refused():
    env = make_factory()()
    env._see = lambda: host_envs.Patience._see(env)._replace(state=np.zeros(5))
    message = r"tiny:patience: in the first observation `state` has shape \(5,\), expected \(4,\)"
    with pytest.raises(UserError, match=message):
        first_observation(env)
