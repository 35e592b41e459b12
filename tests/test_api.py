"""Training from Python: environments that are objects, settings, callbacks, runs as objects."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

import fake_loop
import host_envs
import perla
from marks import slow
from perla.envs import objects
from perla.errors import UserError
from perla.runs import sinks
from perla.runs.spec import Run, plan_evaluations

MATRIX = "matrix:climbing"
SMALL = {"num_envs": 2, "rollout_length": 5, "hidden_size": 8, "num_layers": 1, "quiet": True}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Runs without learning, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    fake_loop.install(monkeypatch)


class Own:
    """perla's climbing game, as somebody's own environment."""

    def __init__(self):
        self.inner = perla.make(MATRIX)
        self.spec = self.inner.spec

    def reset(self, key):
        return self.inner.reset(key)

    def step(self, key, state, action):
        return self.inner.step(key, state, action)

    def render(self, state):
        return self.inner.render(state)


# --- Environments -------------------------------------------------------------------------------


def test_ids_of_what_is_handed_over():
    assert objects.identify(MATRIX) == MATRIX
    assert objects.identify(host_envs.Patience) == "host_envs:Patience"
    assert objects.identify(host_envs.Patience()) == "object:Patience"
    assert objects.identify(lambda: Own()) == "object:lambda"

    def make():
        return Own()

    assert objects.identify(make) == "object:make"
    with pytest.raises(UserError, match="env = 3: expected an id, an environment"):
        objects.identify(3)


@pytest.mark.parametrize("env", [Own(), lambda: Own(), Own], ids=["object", "function", "class"])
def test_environments_in_jax(fake, env):
    run = perla.train(env, "ippo", steps=20, **SMALL)
    assert run.finished
    assert run.spec.env == objects.identify(env)


def test_options_are_the_functions_arguments(fake):
    taken = []

    def make(penalty: float = -30.0):
        taken.append(penalty)
        return Own()

    perla.train(make, "ippo", steps=20, env_options={"penalty": np.float32(-3)}, **SMALL)
    assert set(taken) == {-3.0}
    with pytest.raises(UserError, match="unexpected keyword argument 'fine'"):
        perla.train(make, "ippo", steps=20, env_options={"fine": 3}, **SMALL)
    with pytest.raises(UserError, match="an environment object takes no option 'fine'"):
        perla.train(Own(), "ippo", steps=20, env_options={"fine": 3}, **SMALL)


def test_what_makes_no_environment_is_told_in_a_line(fake):
    with pytest.raises(UserError, match="object:lambda returns a dict, which is no environment"):
        perla.train(lambda: {}, "ippo", steps=20, **SMALL)


def test_objects_outside_jax_are_copied():
    env = host_envs.Patience()
    make = objects.factory("object:Patience", env, {})
    one, other = make(), make()
    one.reset(0)
    assert len({id(each) for each in (env, one, other)}) == 3
    assert type(cloudpickle.loads(cloudpickle.dumps(make))()) is host_envs.Patience


SCRIPT = """
import perla
from host_envs import Patience

class Mine(Patience):
    pass

if __name__ == "__main__":
    run = perla.train(Mine(), "ippo", steps=8, num_envs=2, rollout_length=3, hidden_size=8,
        num_layers=1, num_evaluations=1, eval_episodes=1, absolute_episodes=1, out="run", quiet=1)
    print(run.spec.env, run.finished)
"""


def test_a_class_of_a_script_goes_to_worker_processes(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script], env=os.environ | {"PYTHONPATH": here}, cwd=tmp_path,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout == "object:Mine True\n", done.stderr
    # No file brings the object back, whoever trusts it.
    for more in (["--trust"], ["--env", "object:Mine"]):
        told = subprocess.run(
            [sys.executable, "-m", "perla", "evaluate", "run", *more],
            env=os.environ | {"PYTHONPATH": here}, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert told.returncode == 2
        assert "object:Mine is an object of a Python program, which no file holds" in told.stderr
        assert "Traceback" not in told.stderr


def test_a_folder_needs_its_object_again(fake):
    perla.train(Own(), "ippo", steps=20, out="run", **SMALL)
    run = perla.load("run")
    assert run.finished  # Results need no environment.
    assert run.records
    for trust in ((), True, ("object:Own",)):
        with pytest.raises(UserError, match=r"hand it over again in Python: perla.load"):
            perla.load("run", trust=trust).actor()
    assert perla.load("run", env=Own()).actor() == ("best", 0)
    assert perla.load("run", env=Own).actor() == ("best", 0)
    other = perla.make("matrix:penalty-0")
    with pytest.raises(UserError, match="has changed since this run began"):
        perla.load("run", env=other).actor()


# --- Settings -----------------------------------------------------------------------------------


def test_settings_are_flat_and_numbers_may_be_text(fake):
    flat = perla.train(
        MATRIX, "perla-ippo", steps="1e2", seeds="3,7", returns="n-step", n_step="10",
        estimator="sampled", k=np.int64(5), lr="1e-3", eval_episodes=4.0, **SMALL,
    )  # fmt: skip
    config = flat.spec.config
    assert (config.returns.n_step, config.lr) == (10, 1e-3)
    assert config.value.estimator.num_samples == 5
    assert (flat.spec.steps, flat.spec.seeds, flat.spec.eval_episodes) == (100, (3, 7), 4)
    assert perla.train(MATRIX, "ippo", steps=1e1, **SMALL).spec.steps == 10


def test_settings_may_be_configurations(fake):
    from perla.methods.values import Embedded, Multilinear

    value = Embedded(critic_input="global", critic_model=Multilinear(rank=16))
    run = perla.train(MATRIX, "happo", steps=10, value=value, **SMALL)
    assert run.spec.config.value == value


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"steps": 1.5}, "steps 1.5: expected a whole number"),
        ({"steps": "many"}, "steps many: expected a whole number"),
        ({"n_step": 3}, "n_step belongs to returns n-step; this run has returns"),
        ({"returns": "nstep"}, "did you mean 'n-step'"),
        ({"lrr": 1}, "did you mean 'lr'"),
        ({"seeds": 0}, "seeds 0: expected 1 to 1024 seeds"),
        ({"callbacks": [perla.Callback]}, "the class Callback: expected objects of perla.Callback"),
        ({"keep_checkpoints": "none"}, "keep_checkpoints none: expected"),
    ],
)
def test_mistakes_are_told_in_a_line(fake, wrong, told):
    with pytest.raises(UserError, match=told):
        perla.train(MATRIX, "ippo", **{"steps": 20, **SMALL, **wrong})


# --- Callbacks ----------------------------------------------------------------------------------


class Listener(perla.Callback):
    """Notes all calls, and stops the run at one of them."""

    def __init__(self, stop_at=None):
        self.heard, self.stop_at = [], stop_at

    def note(self, event, progress):
        self.heard.append((event, progress.step))
        if self.heard[-1] == self.stop_at:
            progress.stop()

    def on_start(self, progress):
        self.note("start", progress)

    def on_interval(self, progress):
        self.note("interval", progress)

    def on_evaluation(self, progress):
        assert progress.records[0]["step"] >= progress.step
        assert progress.mean() is not None
        assert progress.mean("nothing") is None
        self.note("evaluation", progress)

    def on_checkpoint(self, progress):
        self.note("checkpoint", progress)

    def on_end(self, progress):
        assert (progress.summary is None) == progress.stopping
        self.note("end", progress)


def test_callbacks_hear_every_event(fake):
    listener = Listener()
    perla.train(MATRIX, "ippo", steps=20, num_evaluations=2, callbacks=[listener], out="run",
                checkpoint_seconds=0, **SMALL)  # fmt: skip
    assert listener.heard == [
        ("start", 0), ("evaluation", 0), ("checkpoint", 0),
        ("interval", 10), ("evaluation", 10), ("checkpoint", 10),
        ("interval", 20), ("evaluation", 20), ("checkpoint", 20), ("end", 20),
    ]  # fmt: skip


@pytest.mark.parametrize("event", ["start", "interval", "evaluation", "checkpoint"])
def test_a_callback_stops_a_run_that_can_be_resumed(fake, event):
    settings = dict(steps=40, num_evaluations=2, checkpoint_seconds=0, **SMALL)
    whole = perla.train(MATRIX, "ippo", out="whole", **settings)
    listener = Listener(stop_at=(event, 0 if event == "start" else 20))
    run = perla.train(MATRIX, "ippo", out="run", callbacks=[listener], **settings)
    assert listener.heard[-1][0] == "end"
    assert not run.finished
    assert len(run.records) < len(whole.records)
    with pytest.raises(UserError, match=r"run: is not finished; run.resume\(\) goes on"):
        run.summary  # noqa: B018
    again = perla.load("run").resume(quiet=True)
    assert again.finished
    assert timeless(again.records) == timeless(whole.records)


def test_a_function_is_called_after_each_evaluation_and_may_stop_a_run_in_memory(fake):
    steps = []

    def patience(progress):
        steps.append(progress.step)
        if progress.step >= 20:
            progress.stop()

    run = perla.train(MATRIX, "ippo", steps=40, num_evaluations=4, callbacks=[patience], **SMALL)
    assert steps == [0, 10, 20]
    assert not run.finished
    assert run.actor() == ("best", 0)
    with pytest.raises(UserError, match="has no folder to go on from; train with out=DIR"):
        run.resume()


def test_ctrl_c_leaves_a_folder_that_can_be_resumed(fake):
    def interrupt(progress):
        if progress.step == 20:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="perla resume run"):
        perla.train(MATRIX, "ippo", steps=4000, num_evaluations=200, out="run",
                    callbacks=[interrupt], **SMALL)  # fmt: skip
    assert perla.load("run").resume(quiet=True).finished


def timeless(records):
    return [{k: v for k, v in r.items() if k not in perla_clocks()} for r in records]


def perla_clocks():
    from perla.runs.store import CLOCKS

    return CLOCKS


# --- Runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small run on foraging, really trained."""
    out = tmp_path_factory.mktemp("api") / "run"
    return perla.train(
        "lbf:Foraging-5x5-2p-1f-v2", "ippo", steps=200, seeds=2, num_evaluations=2,
        eval_episodes=2, absolute_episodes=4, out=out, **SMALL,
    )  # fmt: skip


@pytest.fixture(params=["trained", "loaded", "pickled"])
def run(trained, request):
    if request.param == "loaded":
        return perla.load(trained.out)
    return pickle.loads(pickle.dumps(trained)) if request.param == "pickled" else trained


def test_a_runs_results_are_data_frames(run):
    curves, table = run.curves(), run.table()
    assert list(curves.groupby("seed").size()) == [3, 3]
    assert curves["return"].notna().all()
    assert list(table.index) == [0, 1]
    assert table["absolute_return"].tolist() == [
        entry["absolute"]["return"] for entry in run.summary["seeds"]
    ]
    assert {"final_return_sampled", "best_step"} <= set(table.columns)


def test_a_run_shows_itself(run):
    assert "ippo on lbf:Foraging-5x5-2p-1f-v2, 2 seeds, 200 steps, finished" in repr(run)
    form = run._repr_html_()
    assert "lbf:Foraging-5x5-2p-1f-v2" in form
    assert "data:image/png;base64," in form


def test_names_are_text_in_the_form(fake):
    perla.train(MATRIX, "ippo", steps=10, out="<b>bold</b>", **SMALL)
    form = perla.load("<b>bold</b>")._repr_html_()
    assert "&lt;b&gt;bold" in form
    assert "<b>" not in form


def test_a_run_is_plotted(run):
    lines = run.plot().axes[0].get_legend_handles_labels()[1]
    lines += [text.get_text() for text in run.plot().legends[0].get_texts()]
    assert {"greedy return", "sampled return"} <= set(lines)
    assert run.plot("td_error", "entropy").legends
    with pytest.raises(UserError, match="did you mean 'entropy'"):
        run.plot("entorpy")


def test_episodes_are_those_of_the_command_line(trained, capsys):
    from perla.cli import main

    frame = trained.evaluate(6, seed=1)
    assert len(frame) == 6
    main(["evaluate", str(trained.out), "--episodes", "6", "--seed", "1"])
    assert f"{frame['return'].mean():.4f}" in capsys.readouterr().out


def test_films_are_shown_and_saved(trained, tmp_path):
    film = trained.render(tmp_path / "a.gif", episodes=1)
    assert (tmp_path / "a.gif").read_bytes() == film.gif()
    assert "data:image/gif;base64," in film._repr_html_()
    with pytest.raises(UserError, match=r"a.mp4: expected a name that ends in .gif or .png"):
        film.save("a.mp4")


def test_without_pandas_the_remedy_is_named(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pandas is not installed: pip install .*'pandas>="):
        trained.curves()


# --- Notebooks ----------------------------------------------------------------------------------


def test_a_notebook_has_a_progress_bar(fake, monkeypatch, capsys):
    from rich.console import Console

    from perla.runs import notebook

    monkeypatch.setattr(notebook, "Console", lambda: Console(force_jupyter=True))
    display = notebook.display()
    assert isinstance(display, notebook.Notebook)
    assert isinstance(notebook.display(quiet=True), sinks.Silent)
    run = Run(env=MATRIX, algo="ippo", config=perla_config(), steps=20)
    display.begin(run, "evaluations", 0)
    display.consume([{"seed": 0, "step": 10, "return": 0.5}])
    display.say("a message")
    display.close()
    told = capsys.readouterr()
    assert "a message" in told.out
    assert "10.0/20.0" in told.err
    assert "return=0.500" in told.err


def perla_config():
    from perla.methods.recipes import make

    return make("ippo")


# --- Longer runs --------------------------------------------------------------------------------


def test_an_extended_run_keeps_its_evaluations(fake):
    env = perla.make(MATRIX)
    run = Run(env=MATRIX, algo="ippo", config=perla_config().replace(num_envs=2, rollout_length=5),
              steps=100, num_evaluations=5)  # fmt: skip
    before = plan_evaluations(run, env)
    after = plan_evaluations(run.extended(160).extended(300), env)
    assert before.schedule == (0, 20, 40, 60, 80, 100)
    assert after.schedule == (*before.schedule, 120, 140, 160, 180, 200, 220, 240, 260, 280, 300)
    assert after[1:] == before[1:]
    assert [stage.steps for stage in run.extended(160).extended(300).stages()] == [100, 160, 300]


def test_a_finished_run_is_extended(fake, capsys):
    perla.train(MATRIX, "ippo", steps=40, num_evaluations=4, out="run", **SMALL)
    before = perla.load("run").records
    again = perla.load("run").resume(steps="1e2", quiet=False)
    assert "extended from 40 to 100 steps; schedules of settings follow" in capsys.readouterr().out
    assert again.finished
    assert again.records[: len(before)] == before
    assert [record["step"] for record in again.records] == list(range(0, 101, 10))
    assert perla.load("run").spec.steps == 100
    with pytest.raises(UserError, match="steps = 100: the run has 100 already; name more"):
        perla.load("run").resume(steps=100)


def test_an_extended_run_resumes_to_the_bit(fake):
    settings = dict(steps=40, num_evaluations=4, checkpoint_seconds=0, **SMALL)
    for name in ("one", "two"):
        perla.train(MATRIX, "ippo", out=name, **settings)
    whole = perla.load("one").resume(steps=100, quiet=True)
    cut = Listener(stop_at=("evaluation", 60))
    perla.load("two").resume(steps=100, quiet=True, callbacks=[cut], checkpoint_seconds=0)
    assert timeless(perla.load("two").resume(quiet=True).records) == timeless(whole.records)


# --- Warm starts --------------------------------------------------------------------------------

FORAGING = "lbf:Foraging-5x5-2p-1f-v2"
TINY = dict(steps=20, seeds=(5,), num_evaluations=1, eval_episodes=1, absolute_episodes=1, **SMALL)


def leaves(run, part):
    import jax

    _, _, exported = run._load()
    tree = exported.best_actor if part == "best" else exported.learner.actor
    return [np.asarray(leaf)[0] for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(("part", "taken"), [("all", "last"), *slow(("actor", "best"))])
def test_a_warm_start_begins_with_the_parameters_of_another_run(trained, tmp_path, part, taken):
    started = []

    class Stop(perla.Callback):
        def on_start(self, progress):
            started.extend(Path(progress.out, "checkpoints").iterdir())
            raise KeyError

    with pytest.raises(KeyError):
        perla.train(FORAGING, "ippo", out=tmp_path / "run", warm_start=trained,
                    warm_start_part=part, callbacks=[Stop()], **TINY)  # fmt: skip
    assert [path.name for path in started] == ["step_000000000000.safetensors"]
    begun = perla.load(tmp_path / "run")
    for one, other in zip(leaves(begun, "last"), leaves(trained, taken), strict=True):
        np.testing.assert_array_equal(one, other)
    assert begun.spec.warm_start.part == part
    # The folder is complete by itself.
    assert begun.resume(quiet=True).finished


def test_a_warm_start_of_another_shape_is_told_in_a_line(trained, tmp_path):
    with pytest.raises(
        UserError, match=r"cannot begin this run: \.learner\.\S+ is float32\[\d+, 8\], "
    ):
        perla.train(FORAGING, "ippo", warm_start=trained, **TINY | {"hidden_size": 16})
    with pytest.raises(UserError, match="take --from-part actor"):
        perla.train(FORAGING, "perla-ippo", warm_start=trained, **TINY)
    with pytest.raises(UserError, match="nowhere: not a run folder"):
        perla.train(FORAGING, "ippo", warm_start=tmp_path / "nowhere", **TINY)


@pytest.mark.slow
def test_a_value_decomposition_starts_warm(tmp_path):
    settings = TINY | {"batch_size": 2}
    first = perla.train(FORAGING, "vdn", out=tmp_path / "a", **settings)
    for part in ("all", "actor"):
        assert perla.train(
            FORAGING, "vdn", warm_start=first, warm_start_part=part, **settings
        ).finished


def test_identities_are_those_of_runs_without_the_later_fields():
    from hashlib import sha256

    from perla.config import to_json

    run = Run(env=MATRIX, algo="ippo", config=perla_config(), steps=20)
    text = to_json(run)
    for field in (b'"extended_from": []', b'"warm_start": null', b'"data_parallel": 1'):
        assert text.count(b",\n  " + field) == 1
        text = text.replace(b",\n  " + field, b"")
    assert run.identity == sha256(text).hexdigest()
    assert run.extended(30).identity != run.replace(steps=30).identity
    assert run.replace(data_parallel=2).identity != run.identity


# --- Runs as files ------------------------------------------------------------------------------


def test_a_run_is_printed_and_read_again(fake, capsys):
    from perla.cli import main

    flags = [
        "--env",
        MATRIX,
        "--steps",
        "20",
        "--num-envs",
        "2",
        "--rollout-length",
        "5",
        "--lr",
        "0.1",
    ]
    assert main(["train", "ippo", *flags, "--print-config"]) == 0
    Path("run.json").write_text(capsys.readouterr().out)
    assert not Path("runs").exists()
    assert main(["train", "--config", "run.json", "--quiet", "--out", "one"]) == 0
    changed = ["--seeds", "3,4", "--steps", "40", "--gamma", "0.5", "--env", "matrix:penalty-0"]
    assert main(["train", "--config", "run.json", "--quiet", "--out", "two", *changed]) == 0
    one, two = perla.load("one").spec, perla.load("two").spec
    assert (one.steps, one.config.lr, one.config.gamma, one.env) == (20, 0.1, 0.99, MATRIX)
    assert (two.steps, two.config.lr, two.config.gamma, two.seeds) == (40, 0.1, 0.5, (3, 4))
    assert two.env == "matrix:penalty-0"
    # A run folder's own file is one, too.
    assert main(["train", "--config", "one/config.json", "--quiet", "--out", "three"]) == 0
    assert perla.load("three").spec == one
    assert main(["train", "mappo", "--config", "run.json"]) == 2
    assert (
        "mappo: --config run.json names method and preset; leave out ALGO"
        in capsys.readouterr().err
    )


def test_an_environment_that_a_file_names_is_not_made_without_trust(fake, capsys):
    from perla.cli import main

    assert (
        main(["train", "ippo", "--env", "nowhere.module:make", "--steps", "10", "--print-config"])
        == 0
    )
    Path("run.json").write_text(capsys.readouterr().out)
    assert main(["train", "--config", "run.json"]) == 2
    told = capsys.readouterr().err
    assert "its environment nowhere.module:make is code; if you trust it" in told
    for word in (["--trust"], ["--env", "nowhere.module:make"]):
        assert main(["train", "--config", "run.json", *word]) == 2
        assert "no module 'nowhere.module'" in capsys.readouterr().err


def test_steps_of_resume_on_the_command_line(fake, capsys):
    from perla.cli import main

    perla.train(MATRIX, "ippo", steps=20, out="run", **SMALL)
    assert main(["resume", "run", "--steps", "1e2"]) == 0
    assert "extended from 20 to 100 steps" in capsys.readouterr().out
    assert main(["resume", "run", "--steps", "50"]) == 2
    assert "steps = 50: the run has 100 already" in capsys.readouterr().err


# --- Comparisons --------------------------------------------------------------------------------


@pytest.fixture
def two(fake):
    for algo in ("ippo", "mappo"):
        perla.train(MATRIX, algo, steps=40, seeds=3, out=f"runs/{algo}", **SMALL)


def test_finished_runs_are_compared(two):
    for what in (["runs/ippo", Path("runs/mappo")], [perla.load("runs/ippo"), "runs/mappo"]):
        comparison = perla.compare(*what)
        assert list(comparison.table().index) == ["ippo", "mappo"]
        assert comparison.verdict in repr(comparison)
    table = perla.compare({"mine": perla.load("runs/ippo"), "theirs": "runs/mappo"}, out="both")
    assert list(table.table().index) == ["mine", "theirs"]
    assert (table.table()["absolute_low"] <= table.table()["absolute_high"]).all()
    assert Path("both/summary.json").exists()
    assert comparison.plot().axes


def test_other_programs_results_are_read_as_the_caller_says(two):
    rows = [f"{t},{value},{seed}" for seed in range(3) for t, value in ((1, 0.0), (2.5, 0.5))]
    Path("theirs.csv").write_text("\n".join(["t,score,seed", *rows]) + "\n")
    columns = {"step": "t", "return": "score"}
    reading = {"columns": columns, "tasks": {"": MATRIX}, "step_factor": 16}
    for tasks in ({"": MATRIX}, MATRIX):
        comparison = perla.compare(
            "runs/ippo", {"theirs": "theirs.csv"}, reading=reading | {"tasks": tasks}
        )
        theirs = comparison.runs[1]
        assert (theirs.method, theirs.task) == ("theirs", MATRIX)
        assert theirs.steps.tolist() == [16, 40]


@pytest.mark.parametrize(
    ("reading", "told"),
    [
        ({"task": MATRIX}, "unknown reading 'task'; did you mean 'tasks'"),
        ({"step_factor": 0}, "reading: step_factor 0: expected"),
        ({"columns": ["t"]}, "reading: columns"),
    ],
)
def test_a_wrong_reading_is_told_in_a_line(two, reading, told):
    with pytest.raises(UserError, match=told):
        perla.compare("runs/ippo", "runs/mappo", reading=reading)


@pytest.mark.parametrize(
    "given", [{"steps": 10}, {"env": MATRIX}, {"eval_episodes": 2}, {"processes": 1}, {"lr": 0.1}]
)
def test_training_s_options_are_refused_for_finished_runs(two, given):
    (name,) = given
    with pytest.raises(UserError, match=f"^{name}: is for training"):
        perla.compare("runs/ippo", "runs/mappo", **given)


@pytest.mark.parametrize(
    ("what", "options", "told"),
    [
        (["nowhere"], {}, "nowhere: no such folder"),
        (["ippo", "mappo"], {}, "methods need env=…, steps=… and out=DIR"),
        (["ippo"], {"env": MATRIX, "steps": 10, "out": "a"}, "takes two methods or more"),
        (
            ["ippo", "mappo"],
            {"env": MATRIX, "steps": 10, "out": "a", "reading": {"tag": "return"}},
            "reading: is for other programs' results",
        ),
        (
            ["ippo", "mappo"],
            {"env": MATRIX, "steps": 10, "out": "a", "lrr": 1},
            "did you mean 'lr'",
        ),
    ],
)
def test_mistakes_of_comparisons_are_told_in_a_line(fake, what, options, told):
    with pytest.raises(UserError, match=told):
        perla.compare(*what, **options)


def test_methods_are_compared_on_an_object(fake):
    settings = dict(steps=20, seeds=3, out="both", **SMALL)
    comparison = perla.compare("ippo", "perla-ippo", env=Own(), **settings)
    assert len(comparison.runs) == 2
    assert comparison.failures == {}
    before = sorted(Path("both").rglob("config.json"))
    assert perla.compare("ippo", "perla-ippo", env=Own(), **settings).verdict == comparison.verdict
    assert sorted(Path("both").rglob("config.json")) == before


def test_suites_of_mappings_and_mistakes_in_them(fake):
    grid = {"env": MATRIX, "algo": "ippo", "steps": 10, "seeds": 1}
    with pytest.raises(UserError, match=r"suite: .*steps"):
        perla.suite({"name": "a", "grids": [grid | {"steps": "ten"}]})
    with pytest.raises(UserError, match="unknown experiment"):
        perla.reproduce("nothing")


@pytest.mark.slow
def test_a_suite_runs_in_processes(fake):
    grid = {"env": MATRIX, "algo": ["ippo", "mappo"], "steps": 200, "seeds": 3,
            "settings": {"num_envs": 2, "hidden_size": 8}}  # fmt: skip
    comparison = perla.suite({"name": "a", "grids": [grid]}, quiet=True)
    assert len(comparison.table()) == 2
