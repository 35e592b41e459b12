"""On Ray, cells end as they do on one machine, whatever dies meanwhile."""

import json
import logging
import shutil
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

import fake_worker
from perla.errors import UserError
from perla.methods.recipes import make
from perla.runs.spec import Run
from perla.suites import ray as on_ray
from perla.suites.executors import Task
from perla.suites.local import Local
from perla.suites.ray import Ended, Files, Mirror, Ray, contents, held, put
from test_resume import outcome

ENV = "lbf:Foraging-5x5-2p-1f-coop-v2"
FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
EAGER = (sys.executable, "-c", """
import sys
from functools import partial
from perla.runs import execute
from perla.suites import worker

execute.train = partial(execute.train, checkpoint_seconds=0.0)
execute.resume = partial(execute.resume, checkpoint_seconds=0.0)
sys.exit(worker.main())
""")  # fmt: skip
"""A worker as it is, but for its haste with checkpoints."""


def real(out, *steps):
    """Tasks that really learn, and share what is compiled for them: their seeds differ."""
    config = make("ippo", copies=2, horizon=8, hidden=8, epochs=1)
    shared = {"eval_episodes": 2, "absolute_episodes": 2, "evaluations": 20}
    return [
        Task(Run(env=ENV, algo="ippo", config=config, steps=n, seeds=(i,), **shared), out / f"{i}")
        for i, n in enumerate(steps)
    ]


def fake(out, *rates, evaluations=5):
    """Tasks of the fake worker, which fail as their learning rates say."""
    return [
        Task(
            Run(
                env=ENV,
                algo="ippo",
                config=make("ippo", copies=2, horizon=5, lr=rate),
                steps=500,
                seeds=(0, 3),
                evaluations=evaluations,
            ),
            out / f"{rate}",
        )
        for rate in rates
    ]


def steps(folder):
    """Those of the checkpoints in a run's folder."""
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


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where what was compiled once is found by all others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERLA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Death(threading.Thread):
    """Kills a node as soon as a cell is at work on it beyond its first checkpoint."""

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
        if event.kind == "started":
            self.at_work[event.task.folder] = event.text
        else:
            self.at_work.pop(event.task.folder, None)


LONG, SHORT = 60_000, 400


@pytest.mark.parametrize(
    ("count", "dies"),
    [
        pytest.param(3, True, id="3-cells-one-node-dies"),
        pytest.param(12, False, id="12-cells", marks=pytest.mark.slow),
        pytest.param(12, True, id="12-cells-one-node-dies", marks=pytest.mark.slow),
    ],
)
def test_a_cluster_computes_what_one_machine_does(
    cluster, node, cache, tmp_path, monkeypatch, count, dies
):
    lengths = [LONG] * 2 + [SHORT] * (count - 2)
    here, there = real(tmp_path / "here", *lengths), real(tmp_path / "there", *lengths)
    monkeypatch.setattr(on_ray, "PROGRAM", EAGER)
    death = Death(cluster, node)
    if dies:
        death.start()
    events, before = [], b""
    for event in Ray(cluster.address).carry_out(there):
        events.append(event)
        death.hear(event)
        if event.kind == "retried":
            before = (event.task.folder / "metrics.jsonl").read_bytes()
            resumed = max(steps(event.task.folder))
    list(Local(2).carry_out(here))

    assert [outcome(task.folder) for task in there] == [outcome(task.folder) for task in here]
    assert len({event.text for event in events if event.kind == "started"}) >= 2
    kinds = [event.kind for event in events]
    assert kinds.count("finished") == count
    assert kinds.count("retried") == dies
    assert len(events) == 2 * count + 2 * dies
    if dies:
        retried = events[kinds.index("retried")]
        assert retried.task.folder == death.victim
        assert node.node_id[:6] in retried.text
        assert retried.text.endswith(f"goes on from step {resumed:,}")
        _, again = [e for e in events if e.kind == "started" and e.task == retried.task]
        assert again.text.endswith(f"from step {resumed:,}")
        assert node.node_id[:6] not in again.text
        # It did not begin again: what was learnt until then has kept even its clocks.
        kept = [line for line in before.splitlines() if json.loads(line)["step"] <= resumed]
        assert len(kept) > 1
        assert (death.victim / "metrics.jsonl").read_bytes().splitlines()[: len(kept)] == kept


def test_a_failing_cell_is_named_and_the_rest_goes_on(cluster, node, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(on_ray, "PROGRAM", FAKE)
    monkeypatch.setenv("PERLA_CACHE", "off")
    broken, crashing, mortal, good, busy = tasks = fake(
        tmp_path,
        fake_worker.BROKEN,
        fake_worker.CRASHING,
        fake_worker.MORTAL,
        1e-3,
        1e-4,
    )
    with held(busy.folder):
        events = list(Ray(cluster.address, retries=1).carry_out(tasks))
    told = {
        task.folder: [(e.kind, e.text) for e in events if e.task == task and e.kind != "started"]
        for task in tasks
    }
    assert told[broken.folder] == [("failed", "lr = 0.5: far too much")]
    assert told[crashing.folder] == [("failed", "ZeroDivisionError: division by zero")]
    (kind, why), (last, _) = told[mortal.folder]
    assert (kind, last) == ("retried", "failed")
    assert "node " in why
    assert "killed by SIGKILL; goes on from step 100" in why or "from step 0" in why
    assert told[good.folder] == [("finished", "")]
    assert told[busy.folder] == [
        ("failed", f"{busy.folder}: another process is at work on this run")
    ]
    assert "Traceback" in crashing.folder.with_name("0.25.log").read_text()
    assert not good.folder.with_name("0.001.log").exists()
    assert "".join(capfd.readouterr()) == ""


def test_who_was_interrupted_goes_on_where_it_was(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(on_ray, "PROGRAM", FAKE)
    monkeypatch.setenv("PERLA_CACHE", "off")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (task,) = fake(tmp_path / "cut", fake_worker.SLOW, evaluations=25)
    (whole,) = fake(tmp_path / "whole", fake_worker.SLOW, evaluations=25)
    with closing(Ray().carry_out([task])) as events:
        assert next(events).kind == "started"
        threading.Timer(8.0, interrupt).start()
    print(steps(task.folder))
    list(Local(1).carry_out([whole]))
    assert outcome(task.folder) == outcome(whole.folder)
