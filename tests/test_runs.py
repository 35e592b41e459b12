"""Runs: what they leave behind, and that no failure spoils it."""

import errno
import json
import math
import os
import struct
import sys

import numpy as np
import pytest
from rich.console import Console

import fake_loop
from fake_loop import frames
from perla.analysis import run_figure
from perla.analysis.load import load
from perla.analysis.stats import iqm
from perla.config import Config, field_docs, from_json, to_json
from perla.errors import UserError
from perla.files import append, write_atomic
from perla.methods.recipes import make
from perla.runs import execute, replay, sinks
from perla.runs.spec import Run, schedule
from perla.runs.store import CLOCKS, Folder, dump

ENV = "lbf:Foraging-5x5-2p-1f-v2"


@pytest.fixture
def run():
    config = make("perla-ippo", num_envs=2, rollout_length=5)
    return Run(
        env=ENV, algo="perla-ippo", config=config, steps=100, seeds=(0, 3), num_evaluations=5
    )


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    fake_loop.install(monkeypatch)


def timeless(records):
    return [{k: v for k, v in record.items() if k not in CLOCKS} for record in records]


# --- The run as data ----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 20, 999, 1000, 1001, 12_345])
@pytest.mark.parametrize("evaluations", [1, 3, 50])
@pytest.mark.parametrize("per_update", [1, 20, 1000, 5000])
def test_a_schedule_begins_before_training_and_ends_with_it(steps, evaluations, per_update):
    points = schedule(steps, evaluations, per_update)
    gaps = np.diff(points)
    assert points[0] == 0
    assert points[-1] == steps
    assert len(points) <= evaluations + 1
    assert gaps.max() - gaps.min() <= 1
    assert gaps.min() >= min(per_update, steps), "an interval without an update"
    assert len(points) == evaluations + 1 or len(points) * per_update > steps


def test_a_run_survives_json(run):
    run = run.replace(env_options={"penalty": 0.1, "reward": "individual"})
    assert from_json(to_json(run), Run, source="test") == run


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"steps"', b'"stepps"'), (b'"num_envs": 2', b'"num_envs": "2"'), (b'"algo"', b'"no"')],
)
def test_json_is_read_strictly(run, old, new):
    with pytest.raises(UserError, match=r"config\.json"):
        from_json(to_json(run).replace(old, new), Run, source="config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"steps": -5},
        {"steps": 10**30},
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"seeds": (-1,)},
        {"num_evaluations": 0},
        {"eval_episodes": -1},
    ],
)
def test_impossible_runs_cannot_be_made(run, change):
    with pytest.raises(UserError, match=next(iter(change))):
        run.replace(**change)


def test_every_setting_explains_itself():
    def structs(cls):
        yield cls
        for child in cls.__subclasses__():
            yield from structs(child)

    own = {cls for cls in structs(Config) if cls.__module__.startswith("perla.")}
    for cls in own:
        docs = field_docs(cls)
        assert set(docs) == set(cls.__struct_fields__)
        assert all(docs.values()), cls


# --- Carrying out -------------------------------------------------------------------------------


def test_a_run_folder_holds_everything(run, tmp_path):
    result = execute.train(run, tmp_path / "a")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    events = {name for name in names if name.startswith("events.")}
    assert names - events == {
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "marl_eval.json",
        "checkpoints",
        "curves.png",
        "replay.gif",
    }
    assert len(events) == 1
    facts = json.loads((tmp_path / "a/config.json").read_text())
    names = {"settings_version", "run", "evaluations", "versions", "hardware", "environment"}
    assert set(facts) == names
    assert facts["environment"]["rules"]
    assert facts["versions"]["jax"]
    assert Folder.open(tmp_path / "a").run() == run
    assert Folder.open(tmp_path / "a").records() == result.records
    assert Folder.open(tmp_path / "a").summary() == result.summary


def test_a_run_whose_world_has_changed_does_not_go_on(run, tmp_path):
    payoffs, out = tmp_path / "payoffs.json", tmp_path / "a"
    payoffs.write_text("[[1, 2], [3, 4]]")
    execute.train(run.replace(env=f"matrix:{payoffs}"), out)
    (out / "summary.json").unlink()
    payoffs.write_text("[[1, 2], [3, 5]]")
    with pytest.raises(UserError, match=r"payoffs\.json has changed since this run began"):
        execute.resume(out)
    payoffs.write_text("[[1, 2], [3, 4.0]]")
    assert execute.resume(out).records


def test_records_count_steps_of_each_seed(run):
    records = execute.train(run, None).records
    assert [r["step"] for r in records if r["seed"] == 3] == [0, 20, 40, 60, 80, 100]
    assert [r["evaluation"] for r in records if r["seed"] == 0] == [0, 1, 2, 3, 4, 5]
    assert all(
        a["wall_seconds"] <= b["wall_seconds"] for a, b in zip(records, records[2:], strict=False)
    )


def test_what_is_not_a_number_is_null(run, tmp_path):
    execute.train(run, tmp_path / "a")
    first = json.loads((tmp_path / "a/metrics.jsonl").read_text().splitlines()[0])
    assert first["ent_coef"] is None
    assert "NaN" not in (tmp_path / "a/metrics.jsonl").read_text()


def test_the_summary_says_what_the_records_say(run):
    result = execute.train(run, None)
    for entry in result.summary["seeds"]:
        own = [r for r in result.records if r["seed"] == entry["seed"]]
        assert entry["final"]["return"] == own[-1]["return"]
        assert entry["best"]["return"] == max(r["return"] for r in own)
    finals = [entry["final"]["return"] for entry in result.summary["seeds"]]
    assert result.summary["iqm"]["final"] == pytest.approx(np.mean(finals))
    assert result.summary["steps"] == 100


def test_the_marl_eval_layout(run, tmp_path):
    execute.train(run, tmp_path / "a")
    layout = json.loads((tmp_path / "a/marl_eval.json").read_text())
    seeds = layout["lbf"]["Foraging-5x5-2p-1f-v2"]["perla-ippo"]
    assert set(seeds) == {"seed_0", "seed_3"}
    entry = seeds["seed_3"]
    assert set(entry) == {f"step_{k}" for k in range(6)} | {"absolute_metrics"}
    assert set(entry["step_2"]) == {"step_count", "elapsed_time", "return"}
    assert entry["step_2"]["step_count"] == 40
    assert all(len(values) == 1 for values in entry["absolute_metrics"].values())


def test_actors_are_found_by_their_seed(run, tmp_path):
    result = execute.train(run, tmp_path / "a")
    assert result.actor() == ("best", 0)
    assert result.actor(3, best=False) == ("last", 1)
    with pytest.raises(UserError, match="seed 5"):
        result.actor(5)


# --- Failures -----------------------------------------------------------------------------------


def test_an_existing_folder_is_refused_and_left_alone(run, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        execute.train(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_an_existing_run_is_refused_with_the_way_to_go_on(run, tmp_path):
    execute.train(run, tmp_path / "a")
    before = (tmp_path / "a/metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="perla resume"):
        execute.train(run, tmp_path / "a")
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == before


def test_a_file_in_the_place_of_the_folder(run, tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        execute.train(run, tmp_path / "a")


def test_two_processes_cannot_work_on_one_run(run, tmp_path):
    execute.train(run, tmp_path / "a")
    holder = Folder.open(tmp_path / "a")
    holder.lock()
    with pytest.raises(UserError, match="another process"):
        execute.resume(tmp_path / "a")
    holder.unlock()
    execute.resume(tmp_path / "a")


def test_a_full_disk_at_any_write_spoils_nothing(run, tmp_path, monkeypatch):
    """Whichever write fails: one line, no half-written file, and the run can go on."""
    monkeypatch.setattr(run_figure, "curves", lambda folder: b"a picture")
    expected = timeless(execute.train(run, tmp_path / "whole", checkpoint_seconds=0.0).records)
    sync = os.fsync
    for allowed in range(1000):
        out = tmp_path / str(allowed)
        calls = 0

        def full(descriptor, allowed=allowed):
            nonlocal calls
            calls += 1
            if calls > allowed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        said = "nothing"
        try:
            execute.train(run, out, checkpoint_seconds=0.0)
        except UserError as error:
            said = str(error)
        monkeypatch.setattr(os, "fsync", sync)
        if calls <= allowed:
            break
        assert "no space left on device" in said
        assert "\n" not in said
        assert not list(tmp_path.rglob(".*"))
        if (out / "config.json").exists():
            Folder.open(out).records()
            assert timeless(execute.resume(out).records) == expected
        else:
            assert timeless(execute.train(run, out).records) == expected
    assert allowed > 20


def test_atomic_writes_leave_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(UserError, match="no space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_appending_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a"
    append(path, b"one\n")
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(UserError):
        append(path, b"two\n")
    assert path.read_bytes() == b"one\n"


@pytest.mark.parametrize(
    "change",
    [
        {"num_envs": 2**31 - 1},
        {"rollout_length": 2**31 - 1},
        {"hidden_size": 2**31 - 1},
        {"num_layers": 2**31 - 1},
    ],
)
def test_what_no_machine_can_hold_is_refused_at_once(run, tmp_path, change):
    run = run.replace(config=run.config.replace(**change))
    with pytest.raises(UserError, match="GiB"):
        execute.train(run, tmp_path / "a")
    assert not (tmp_path / "a").exists()


# --- Sinks --------------------------------------------------------------------------------------


def test_a_pipe_gets_a_short_line_for_each_evaluation(run, capsys):
    display = sinks.Plain(Console(file=sys.stdout, force_terminal=False))
    execute.train(run, None, display=display)
    lines = capsys.readouterr().out.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert len(steps) == 6
    assert all(len(line) < 120 for line in steps)
    assert "steps/s" in steps[1]
    assert "left" in steps[1]
    assert "TD error" in steps[1]
    assert any("IQM" in line for line in lines)


def test_a_terminal_gets_a_live_picture_and_then_the_table(run):
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, force_terminal=True, width=100, record=True)
        execute.train(run, None, display=sinks.Live(console))
    assert "absolute return" in console.export_text()


def test_a_sparkline_fits_and_rises():
    assert sinks.sparkline([float(i) for i in range(8)]) == "▁▂▃▄▅▆▇█"
    assert len(sinks.sparkline([float(i) for i in range(1000)], width=40)) == 40
    assert sinks.sparkline([1.0, 1.0]) == "▁▁"


def events(path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    data, found = path.read_bytes(), []
    while data:
        length, check = struct.unpack("<QI", data[:12])
        content, (check_content,) = (
            data[12 : 12 + length],
            struct.unpack_from("<I", data, 12 + length),
        )
        assert (check, check_content) == (masked_crc32c(data[:8]), masked_crc32c(content))
        found.append(Event.FromString(content))
        data = data[16 + length :]
    return found


def test_tensorboard_has_every_seed_and_the_mean(run, tmp_path):
    result = execute.train(run, tmp_path / "a")
    (path,) = (tmp_path / "a").glob("events.*")
    found = events(path)
    assert found[0].file_version == "brain.Event:2"
    last = {value.tag: value.simple_value for value in found[-1].summary.value}
    final = [record["return"] for record in result.records[-2:]]
    assert found[-1].step == 100
    assert last["return/seed_0"] == pytest.approx(final[0])
    assert last["return/mean"] == pytest.approx(np.mean(final))


# --- Analysis -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 4, 5, 10])
def test_iqm_is_scipys_trimmed_mean(count):
    from scipy.stats import trim_mean

    values = np.random.default_rng(0).normal(size=(count, 7))
    np.testing.assert_allclose(iqm(values), trim_mean(values, 0.25, axis=0))


def test_curves_are_read_and_drawn(run, tmp_path):
    execute.train(run, tmp_path / "a")
    found = load(tmp_path / "a")
    assert found.metrics["return"].shape == (2, 6)
    assert math.isnan(found.metrics["td_error"][0, 0])
    assert run_figure.curves(tmp_path / "a").startswith(b"\x89PNG")


def test_damaged_folders_are_told_in_a_line(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        load(tmp_path)
    (tmp_path / "config.json").write_bytes(dump({"run": {"seeds": [0]}}))
    (tmp_path / "metrics.jsonl").write_text("{]\n")
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path)


def test_pictures_of_an_episode():
    assert replay.gif([frames()]).startswith(b"GIF89a")
    assert replay.png(frames()).startswith(b"\x89PNG")
