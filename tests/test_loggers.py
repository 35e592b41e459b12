"""Loggers: the same numbers as the run folder has, wherever they go."""

import csv
import functools
import json
import struct
import sys
import time

import pytest

import fake_loop
import perla
from perla.analysis.gather import gather
from perla.cli import main
from perla.errors import UserError
from perla.methods.recipes import make
from perla.plugins import install_command
from perla.runs import execute
from perla.runs.loggers import check_loggers, hyperparameters, identifier
from perla.runs.spec import Run
from perla.runs.store import Folder

ENV = "lbf:Foraging-5x5-2p-1f-v2"


@pytest.fixture(autouse=True)
def fake(monkeypatch, tmp_path):
    fake_loop.install(monkeypatch)
    monkeypatch.chdir(tmp_path)


def run(**changes):
    config = make("perla-ippo", num_envs=2, rollout_length=5, lr=0.01)
    facts = {"env": ENV, "algo": "perla-ippo", "steps": 100, "seeds": (0, 3), "num_evaluations": 4}
    return Run(**facts | {"config": config} | changes)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Stop(Exception):
    pass


def interrupted(folder, log, monkeypatch, *, after=3):
    """A run that ends after some evaluations, as at an exception of the loop."""

    class Stopping(fake_loop.FakeTrainer):
        count = 0

        def evaluate(self, states):
            Stopping.count += 1
            if Stopping.count > after:
                raise Stop
            return super().evaluate(states)

    with monkeypatch.context() as patch:
        patch.setattr(execute, "Trainer", Stopping)
        with pytest.raises(Stop):
            execute.train(run(), folder, log=log, checkpoint_seconds=0.0)


def test_tensorboard_is_the_default_and_can_be_left_out(tmp_path):
    execute.train(run(), tmp_path / "a")
    assert list((tmp_path / "a").glob("*.tfevents.*"))
    execute.train(run(), tmp_path / "b", log=())
    assert not list((tmp_path / "b").glob("*.tfevents.*"))
    assert not (tmp_path / "b/metrics.csv").exists()
    for name in ("metrics.jsonl", "summary.json"):
        a, b = ((tmp_path / folder / name).read_text() for folder in "ab")
        assert a.count("\n") == b.count("\n")


def test_the_csv_has_the_lines_of_the_folder(tmp_path, monkeypatch):
    interrupted(tmp_path / "a", ("csv",), monkeypatch)
    execute.resume(tmp_path / "a", log=("csv",))
    rows = list(csv.DictReader((tmp_path / "a/metrics.csv").open()))
    lines = records(tmp_path / "a")
    assert len(rows) == len(lines) == 10
    for row, line in zip(rows, lines, strict=True):
        found = {name: None if text == "" else float(text) for name, text in row.items()}
        assert found == dict.fromkeys(row) | line


def test_perla_reads_its_own_csv(tmp_path):
    execute.train(run(), tmp_path / "a", log=("csv",))
    (found,) = gather([f"mine={tmp_path / 'a/metrics.csv'}"]).runs
    assert found.seeds == (0, 3)
    assert found.metrics["return"].shape == (2, 5)


def test_hyperparameters_are_all_settings_by_name():
    found = hyperparameters(run())
    assert found["lr"] == 0.01
    assert found["value"] == "embedded"
    assert found["value.critic_input"] == "local"
    assert (found["algo"], found["steps"], found["seeds"]) == ("perla-ippo", 100, [0, 3])


def test_mistakes_and_missing_packages_end_in_one_line(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="unknown logger 'wandbb'; did you mean 'wandb'"):
        check_loggers(["csv", "wandbb"])
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
        argv = ["train", "ippo", "--env", ENV, "--steps", "100", "--out", "x", "--log", name]
        assert main(argv) == 2
        line = f"perla: {name} is not installed: {install_command(name)}\n"
        assert capsys.readouterr().err == line
    assert not (tmp_path / "x").exists()


def test_commands_take_the_loggers(tmp_path):
    argv = ["train", "ippo", "--env", ENV, "--steps", "100", "--quiet", "--num-envs", "2"]
    assert main([*argv, "--rollout-length", "5", "--out", "a", "--log", "csv,tensorboard"]) == 0
    assert (tmp_path / "a/metrics.csv").exists()
    assert list((tmp_path / "a").glob("*.tfevents.*"))
    assert main([*argv, "--rollout-length", "5", "--out", "b", "--log", "none"]) == 0
    assert not list((tmp_path / "b").glob("*.tfevents.*"))


def test_python_takes_the_loggers(tmp_path):
    small = {"env": ENV, "algo": "ippo", "steps": 100, "quiet": True, "num_envs": 2}
    train = functools.partial(perla.train, **small, rollout_length=5)
    trained = train(out="a", log="csv")
    assert (tmp_path / "a/metrics.csv").exists()
    assert not list((tmp_path / "a").glob("*.tfevents.*"))
    trained.resume(200, quiet=True, log=["csv", "tensorboard"])
    assert list((tmp_path / "a").glob("*.tfevents.*"))
    with pytest.raises(UserError, match="unknown logger 'wandbb'; did you mean 'wandb'"):
        train(out="b", log=["wandbb"])
    with pytest.raises(UserError, match="log = csv: a run without a folder has no loggers"):
        train(log="csv")
    assert not (tmp_path / "b").exists()


# --- MLflow -------------------------------------------------------------------------------------


def test_mlflow_has_metrics_settings_and_pictures_in_its_file_mode(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'store'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "a"
    interrupted(folder, ("mlflow",), monkeypatch)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("perla").experiment_id
    (stopped,) = client.search_runs([experiment])
    assert stopped.info.status == "KILLED"
    execute.resume(folder, log=("mlflow",))
    (found,) = client.search_runs([experiment])
    assert found.info.run_id == stopped.info.run_id
    assert found.info.status == "FINISHED"
    assert found.data.params["lr"] == "0.01"
    assert found.data.params["value"] == "embedded"
    history = client.get_metric_history(found.info.run_id, "return/seed_3")
    lines = {line["step"]: line["return"] for line in records(folder) if line["seed"] == 3}
    assert {each.step: each.value for each in history} == pytest.approx(lines)
    assert "absolute_return" in found.data.metrics
    names = {each.path for each in client.list_artifacts(found.info.run_id)}
    assert names == {"curves.png", "replay.gif"}


# --- Weights & Biases ---------------------------------------------------------------------------

BLOCK, FULL, LAST = 32768, 1, 4
"""Bytes of a block, and the kinds of records that are complete with this part."""


def wandb_records(folder):
    """The records of the offline runs in a folder, in order: a log in LevelDB's format, whose first
    block begins with seven bytes of a header."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, parts = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            left = BLOCK - at % BLOCK
            if left < 7:  # The rest of a block that has no room for a header is padding.
                at += left
                continue
            _, length, kind = struct.unpack_from("<IHB", data, at)
            if at + 7 + length > len(data):  # Not yet written whole.
                break
            parts += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (FULL, LAST):
                found.append(Record.FromString(parts))
                parts = b""
    return found


def finished_wandb_records(folder, seconds=60):
    """The same once the last one is there: a process of W&B writes them, and may be late."""
    end = time.monotonic() + seconds
    while not (found := wandb_records(folder)) or not found[-1].HasField("exit"):
        assert time.monotonic() < end, [record.WhichOneof("record_type") for record in found]
        time.sleep(0.1)
    return found


def test_wandb_has_metrics_settings_and_pictures_in_its_offline_mode(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    folder = tmp_path / "a"
    execute.train(run(), folder, log=("wandb",))
    found = finished_wandb_records(folder)
    (begun,) = [record.run for record in found if record.HasField("run")]
    assert begun.project == "perla"
    assert begun.run_id == identifier(folder, run())
    config = {each.key: json.loads(each.value_json) for each in begun.config.update}
    assert config["lr"] == 0.01
    assert config["value.critic_input"] == "local"
    histories = [record.history.item for record in found if record.HasField("history")]
    rows = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
        for items in histories
    ]
    lines = {line["step"]: line["return"] for line in records(folder) if line["seed"] == 3}
    logged = {r["environment_steps"]: r["return/seed_3"] for r in rows if "return/seed_3" in r}
    assert logged == pytest.approx(lines)
    media = {path.suffix for path in folder.glob("wandb/offline-run-*/files/media/**/*.*")}
    assert media == {".png", ".gif"}
    assert Folder.open(folder).finished
