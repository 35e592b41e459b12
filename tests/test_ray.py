"""Runs on Ray have the results of one machine, whatever dies meanwhile."""

import inspect
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import fake_worker
import test_tune
from perla import machine
from perla.errors import UserError
from perla.methods.recipes import make
from perla.plugins import install_command
from perla.runs.spec import Run
from perla.suites import display, local
from perla.suites import ray as on_ray
from perla.suites.executors import Task
from perla.suites.local import Local
from perla.suites.ray import Files, Mirror, Ray, apply, contents, locked
from perla.tuning.study import describe, open_study
from test_resume import outcome

pytestmark = pytest.mark.xdist_group("ray")

ENV = "lbf:Foraging-5x5-2p-1f-coop-v2"
FAKE = (str(Path(__file__).with_name("fake_worker.py")),)
EAGER = ("-c", """
import sys
from functools import partial
from perla.runs import execute
from perla.suites import worker

execute.train = partial(execute.train, checkpoint_seconds=0.0)
execute.resume = partial(execute.resume, checkpoint_seconds=0.0)
sys.exit(worker.main())
""")  # fmt: skip
"""The real worker, with a checkpoint after every interval."""
RATED = ("-c", f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import fake_worker, test_tune

class Patient(test_tune.RateTrainer):
    def train(self, states, until, updates):
        time.sleep(0.5)
        return super().train(states, until, updates)

fake_worker.FailingTrainer = Patient
fake_worker.main()
""")  # fmt: skip
"""A worker whose return depends on the learning rate, with a checkpoint after every interval."""


@pytest.fixture(autouse=True)
def undecorated(monkeypatch):
    """Remove the type-checking decorator, which hides from Ray that this is a generator."""
    monkeypatch.setattr(on_ray, "attempt", inspect.unwrap(on_ray.attempt))


INTERVALS = 20
"""Evaluations per task."""


def real(out, count):
    """Tasks that train. Only their seeds differ, so that one compilation serves all."""
    config = make("ippo", num_envs=2, rollout_length=8, hidden_size=8, update_epochs=1)
    run = Run(
        env=ENV,
        algo="ippo",
        config=config,
        steps=100_000,
        num_evaluations=INTERVALS,
        eval_episodes=2,
        absolute_episodes=2,
    )
    return [Task(run.replace(seeds=(seed,)), out / f"{seed}") for seed in range(count)]


def fake(out, *rates):
    """Tasks of the fake worker; their learning rates determine how they fail."""
    config = make("ippo", num_envs=2, rollout_length=5)
    run = Run(env=ENV, algo="ippo", config=config, steps=20_000, num_evaluations=INTERVALS)
    return [
        Task(run.replace(config=config.replace(lr=rate), seeds=(i, i + 3)), out / f"{i}")
        for i, rate in enumerate(rates)
    ]


def slow(out, count):
    """Tasks of the fake worker, the first two of which are slow."""
    return fake(out, *([fake_worker.SLOW] * 2 + [1e-3] * 10)[:count])


@pytest.fixture
def fakes(monkeypatch):
    """Use the fake worker, on this machine and on Ray."""
    monkeypatch.setattr(local, "PROGRAM", FAKE)
    monkeypatch.setattr(on_ray, "PROGRAM", FAKE)


def steps(folder):
    """Return the steps of the checkpoints in a run's folder."""
    names = (folder / "checkpoints").glob("step_*")
    return sorted(int(name.stem.removeprefix("step_")) for name in names)


@pytest.fixture(scope="module")
def cluster():
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    yield cluster
    cluster.shutdown()


@pytest.fixture
def node(cluster):
    """The second node, which may die."""
    node = cluster.add_node(num_cpus=1)
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node)


class Death(threading.Thread):
    """Kills a node as soon as one of the first two cells has its second checkpoint there.

    These cells are slow, so that they are still running when the node dies.
    """

    def __init__(self, cluster, node):
        super().__init__(daemon=True)
        self.cluster, self.node = cluster, node
        self.at_work: dict[Path, str] = {}
        self.victim: Path | None = None

    def run(self):
        while self.victim is None:
            time.sleep(0.02)
            for folder, where in list(self.at_work.items()):
                if self.node.node_id[:6] in where and len(steps(folder)) > 1:
                    self.cluster.remove_node(self.node, allow_graceful=False)
                    self.victim = folder

    def hear(self, event):
        if event.kind == "started" and event.task.folder.name in ("0", "1"):
            self.at_work[event.task.folder] = event.text
        else:
            self.at_work.pop(event.task.folder, None)


def check_against_one_machine(cluster, node, tmp_path, tasks, count, *, dies):
    here, there = tasks(tmp_path / "here", count), tasks(tmp_path / "there", count)
    death = Death(cluster, node)
    if dies:
        death.start()
    events, before, resumed = [], [], 0
    for event in Ray(cluster.address).carry_out(there):
        events.append(event)
        death.hear(event)
        if event.kind == "retried":
            before = (event.task.folder / "metrics.jsonl").read_bytes().splitlines()
            resumed = max(steps(event.task.folder))
    list(Local(2).carry_out(here))

    assert [outcome(task.folder) for task in there] == [outcome(task.folder) for task in here]
    assert files(tmp_path / "there") == files(tmp_path / "here")
    kinds = [event.kind for event in events]
    assert sorted(kinds) == sorted(["started", "finished"] * count + ["retried", "started"] * dies)
    starts = [event for event in events if event.kind == "started"]
    assert any(node.node_id[:6] in event.text for event in starts)
    assert any(cluster.head_node.node_id[:6] in event.text for event in starts)
    if not dies:
        return

    retried = events[kinds.index("retried")]
    assert retried.task.folder == death.victim
    assert f"({node.node_id[:6]}): task failed because the node it was" in retried.text
    assert retried.text.endswith(f"; goes on from step {resumed:,}")
    _, again = [event for event in starts if event.task == retried.task]
    assert again.text.endswith(f"({cluster.head_node.node_id[:6]}), from step {resumed:,}")
    # It was resumed: earlier records are unchanged, clocks included.
    kept = before[: 1 + resumed * INTERVALS // retried.task.run.steps]
    assert len(kept) > 1
    assert (death.victim / "metrics.jsonl").read_bytes().splitlines()[: len(kept)] == kept


def files(out):
    """Return the names of the files, without steps and times."""
    names = [path.relative_to(out).as_posix() for path in out.rglob("*")]
    return sorted({re.sub(r"step_\d+|tfevents.*", "", name) for name in names})


@pytest.mark.slow
def test_of_twelve_cells_on_two_nodes_one_of_which_dies(cluster, node, fakes, tmp_path, capfd):
    check_against_one_machine(cluster, node, tmp_path, slow, 12, dies=True)
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "dies"),
    [
        pytest.param(2, False, id="2-cells"),
        pytest.param(2, True, id="2-cells-one-node-dies", marks=pytest.mark.slow),
        pytest.param(12, False, id="12-cells", marks=pytest.mark.slow),
        pytest.param(12, True, id="12-cells-one-node-dies", marks=pytest.mark.slow),
    ],
)
def test_learning_is_the_same_to_the_bit(cluster, node, tmp_path, monkeypatch, count, dies):
    monkeypatch.setattr(on_ray, "PROGRAM", EAGER)
    check_against_one_machine(cluster, node, tmp_path, real, count, dies=dies)


def test_a_failing_cell_is_named_and_the_rest_goes_on(cluster, fakes, tmp_path, capfd):
    rates = fake_worker.BROKEN, fake_worker.CRASHING, fake_worker.MORTAL, 1e-3, 1e-3
    broken, crashing, mortal, good, busy = tasks = fake(tmp_path, *rates)
    with locked(busy.folder):
        events = list(Ray(cluster.address, retries=1).carry_out(tasks))
    told = {
        task.folder: [(e.kind, e.text) for e in events if e.task == task and e.kind != "started"]
        for task in tasks
    }
    assert told[broken.folder] == [("failed", "lr = 0.5: far too much")]
    assert told[crashing.folder] == [("failed", "ZeroDivisionError: division by zero")]
    (first, reason), (last, end) = told[mortal.folder]
    assert (first, last) == ("retried", "failed")
    assert reason.startswith("node ")
    assert "killed by SIGKILL" in reason
    assert reason.endswith("; goes on from step 1,000")
    assert "killed by SIGKILL" in end
    assert told[good.folder] == [("finished", "")]
    assert told[busy.folder] == [
        ("skipped", f"{busy.folder}: another process is working on this run")
    ]
    assert "Traceback" in crashing.folder.with_name("1.log").read_text()
    assert not good.folder.with_name("3.log").exists()
    assert '"cores": 1,' in (good.folder / "config.json").read_text()
    assert "".join(capfd.readouterr()) == ""


def test_a_connection_that_is_there_is_used_and_kept(cluster, fakes, tmp_path, monkeypatch):
    import ray

    here = machine.versions()
    monkeypatch.setattr(machine, "versions", lambda: here | {"jax": "0.1"})
    ray.init(cluster.address, log_to_driver=False, include_dashboard=False)
    try:
        started, failed = Ray().carry_out(fake(tmp_path, 1e-3))
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    node = started.text.removeprefix("on ")
    there = f"jax is {here['jax']} there and 0.1 on the submitting machine"
    assert (failed.kind, failed.text) == ("failed", f"{node}: {there}")


@pytest.fixture
def hearing():
    """Handle Ctrl-C, also if the tests run in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_an_interruption_leaves_what_can_be_gone_on_with(
    hearing, fakes, tmp_path, monkeypatch, capfd
):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # Paths of sockets must be short.
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    handler = signal.getsignal(signal.SIGTERM)
    (cut,), (whole,) = slow(tmp_path / "cut", 1), slow(tmp_path / "whole", 1)

    def interrupt():
        while len(steps(cut.folder)) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    events = Ray().carry_out([cut])
    assert next(events).kind == "started"
    with pytest.raises(KeyboardInterrupt):
        next(events)
    assert not list((tmp_path / "scratch").glob("perla-*"))
    assert signal.getsignal(signal.SIGTERM) == handler
    assert "".join(capfd.readouterr()) == ""

    reached = len((cut.folder / "metrics.jsonl").read_bytes().splitlines())
    assert reached < 2 * INTERVALS
    list(Local(2).carry_out([cut, whole]))
    assert outcome(cut.folder) == outcome(whole.folder)


@pytest.mark.slow
def test_a_study_with_pruning_is_that_of_one_machine(cluster, node, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "PROGRAM", RATED)
    monkeypatch.setattr(on_ray, "PROGRAM", RATED)
    executors = {
        "here": lambda stop: Local(2, stop=stop),
        "there": lambda stop: Ray(cluster.address, stop=stop),
    }
    found = {}
    for name, executor in executors.items():
        study = open_study(tmp_path / name, test_tune.plan(parallel=2))
        found[name] = study.search(8, executor, display.Silent, lambda text: None)
    assert test_tune.outcomes(found["there"]) == test_tune.outcomes(found["here"])
    pruned = [trial for trial in found["there"] if trial.state == "pruned"]
    assert pruned
    for trial in pruned:
        assert "  pruned after " in describe(trial, "return")
        assert not (study.trial_folder(trial) / "summary.json").exists(), "it was stopped"


# --- Files ---------------------------------------------------------------------------------------


def write(folder, *names):
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(name)


def test_files_are_written_in_a_resumable_order(tmp_path):
    names = ["config.json", "a.tfevents", "marl_eval.json", "metrics.jsonl"]
    names += ["checkpoints/step_1.safetensors", "checkpoints/step_2.safetensors", "summary.json"]
    write(tmp_path, *reversed(names), ".summary.json.12.tmp")
    assert list(contents(tmp_path)) == names


def test_only_changes_are_sent(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, "config.json", "metrics.jsonl", "checkpoints/step_1.safetensors")
    write(there)
    apply(there, Files(contents(here)))
    mirror = Mirror(here)
    assert not mirror.checkpointed
    write(here, "metrics.jsonl")
    assert not mirror.checkpointed
    write(here, "checkpoints/step_2.safetensors", "checkpoints/step_3.safetensors")
    write(here, "summary.json")
    (here / "checkpoints/step_1.safetensors").unlink()
    assert mirror.checkpointed
    news = mirror.changes(finished=False)
    assert list(news.data) == [
        "metrics.jsonl",
        "checkpoints/step_2.safetensors",
        "checkpoints/step_3.safetensors",
    ]
    assert news.gone == ["checkpoints/step_1.safetensors"]
    assert not mirror.checkpointed
    apply(there, news)
    assert contents(there).keys() == contents(here).keys() - {"summary.json"}
    apply(there, mirror.changes(finished=True))
    assert contents(there) == contents(here)


# --- Mistakes ------------------------------------------------------------------------------------


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=re.escape(install_command("ray"))):
        Ray()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"cpus": 0}, "cpus = 0"),
        ({"gpus": -1.0}, "gpus = -1"),
        ({"gpus": 1.5}, "gpus = 1.5"),
        ({"address": "ray://somewhere:10001"}, "cannot stream"),
        ({"address": "127.0.0.1:1"}, "no Ray at 127.0.0.1:1: .*refused"),
        ({"address": "nonsense"}, "no Ray at nonsense: invalid address"),
        ({"address": "local", "cpus": 10**6}, "cpus = 1000000: this machine has"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, says):
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=says):
        next(Ray(**arguments).carry_out(fake(tmp_path, 1e-3)))
