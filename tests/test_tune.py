"""`perla tune`: it beats random search, survives a kill anywhere, and reports no tuning seed."""

import json
import math
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import fake_loop
import fake_worker
import perla
from perla import machine
from perla.analysis import gather
from perla.api import compare
from perla.cli import main
from perla.cli.run_file import read_run
from perla.errors import UserError
from perla.methods.settings import configure
from perla.report import build, sources
from perla.runs import execute
from perla.runs.store import Folder
from perla.suites import cost, display, local, processes, ray, results
from perla.suites.executors import Event, Task, never
from perla.tuning import report, study
from perla.tuning.search import Rule, ask, best
from perla.tuning.space import check_space, check_trials, combinations, consistent, read_space
from perla.tuning.study import Plan, check_seeds, open_study

ENV = "lbf:Foraging-5x5-2p-1f-v2"
SHORT = {"num_envs": 2, "rollout_length": 5}
TUNING, REPORTING = (100, 101), (0, 1, 2)
FAKE = (str(Path(__file__).with_name("fake_worker.py")),)
SPACE = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "hidden_size": [16, 32, 64]}


class RateTrainer(fake_loop.FakeTrainer):
    """The return rises with training, most at a learning rate of 0.003; 0.05 and more crashes."""

    def __init__(self, env, config, **rest):
        super().__init__(env, config, **rest)
        self.lr = config.lr

    def train(self, states, until, updates):
        if self.lr >= 0.05:
            raise UserError(f"lr = {self.lr:g}: far too much")
        return super().train(states, until, updates)

    def _metrics(self, state):
        measured = super()._metrics(state)
        quality = -abs(math.log10(self.lr / 0.003))
        return measured | {"return": quality * int(state["key"][0])}

    def absolute(self, states, episodes=320):
        return [{"return": -abs(math.log10(self.lr / 0.003)), "episode_length": 3.0}] * len(states)


class Here:
    """An executor of this process, which looks at `stop` before a run only."""

    def __init__(self, stop=never, ran=None):
        self.stop, self.ran = stop, [] if ran is None else ran

    def carry_out(self, tasks):
        for task in tasks:
            self.ran.append(task.run.seeds)
            yield Event(task, "started")
            try:
                if (task.folder / "config.json").exists():
                    execute.resume(task.folder, pictures=False)
                else:
                    execute.train(task.run, task.folder, pictures=False)
            except UserError as error:
                yield Event(task, "failed", str(error))
            else:
                yield Event(task, "finished")


@pytest.fixture
def trainer(monkeypatch):
    """Train with a fake loop, without the waits for a disk that only a loss of power needs."""
    fake_loop.install(monkeypatch, RateTrainer)
    versions = machine.versions()
    monkeypatch.setattr(machine, "versions", lambda: versions)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(execute, "train", partial(execute.train, log=[]))
    monkeypatch.setattr(execute, "resume", partial(execute.resume, log=[]))


def plan(space=SPACE, **changes):
    facts = {
        "env": ENV,
        "algo": "ippo",
        "config": configure("ippo", "default", SHORT),
        "space": dict(read_space(space, "ippo")[0]),
        "steps": 100,
        "tuning_seeds": TUNING,
        "num_evaluations": 5,
    }
    return Plan(**facts | changes)


def searched(folder, trials=8, **changes):
    made = open_study(folder, plan(**changes))
    return made, made.search(trials, Here, display.Silent, lambda text: None)


def outcomes(history):
    """The trials without the clocks and the steps that a pruned one happened to make."""
    return [trial.replace(seconds=0.0, steps=0) for trial in history]


# --- Search -------------------------------------------------------------------------------------


def trials_needed(way, seed, batch, most=50):
    """The trials after which the planted optimum of a toy objective is found."""
    space = read_space({"lr": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1], "num_layers": [1, 2, 3, 4],
                        "hidden_size": [16, 32, 64, 128, 256]}, "ippo")[0]  # fmt: skip
    history = []
    while len(history) < most:
        for trial in ask(space, history, batch, seed=seed, search=way):
            lr, layers, size = (trial.settings[name] for name in space)
            far = (round(math.log10(lr)) + 3, layers - 2, round(math.log2(size)) - 7)
            value = -float(np.square(far).sum())
            history.append(trial.replace(state="complete", value=value))
            if value == 0:
                return len(history)
    return most


def test_a_planted_optimum_is_found_in_fewer_trials_than_by_random_search():
    tpe = [trials_needed("tpe", seed, batch=5) for seed in range(20)]
    random = [trials_needed("random", seed, batch=50) for seed in range(20)]
    assert np.mean(tpe) < 0.8 * np.mean(random)
    assert sum(np.less(tpe, random)) > 3 * sum(np.less(random, tpe))


def test_a_batch_depends_on_the_earlier_ones_and_the_seed_alone():
    space = read_space(SPACE, "ippo")[0]
    first = ask(space, [], 4, seed=3)
    assert ask(space, [], 4, seed=3) == first
    assert ask(space, [], 4, seed=4) != first
    history = [trial.replace(state="complete", value=float(trial.number)) for trial in first]
    assert [trial.number for trial in ask(space, history, 2, seed=3)] == [4, 5]
    assert {trial.batch for trial in ask(space, history, 2, seed=3)} == {1}


def test_settings_are_not_repeated_while_there_are_others():
    space = read_space({"hidden_size": [16, 32, 64], "num_layers": {"low": 1, "high": 2}}, "ippo")[
        0
    ]
    history = []
    for _ in range(3):
        history += [
            trial.replace(state="complete", value=0.0) for trial in ask(space, history, 2, seed=0)
        ]
    assert len({tuple(trial.settings.items()) for trial in history}) == 6


def test_a_trial_below_the_median_of_the_complete_ones_is_pruned():
    space = read_space(SPACE, "ippo")[0]
    history = [
        trial.replace(state="complete", value=1.0, values=(0.0, 0.1 * trial.number, 1.0))
        for trial in ask(space, [], 5, seed=0)
    ]
    rule = Rule(space, history, "median")
    assert rule.pruned_at([0.0, 0.1]) == 1
    assert rule.pruned_at([-9.0, 0.3]) is None, "nothing is judged before training"
    assert rule.pruned_at([0.0, None, 0.9]) == 2
    assert Rule(space, history[:3], "median").pruned_at([0.0, -1.0]) is None
    assert Rule(space, history, "none").pruned_at([0.0, -1.0]) is None


def test_the_best_is_the_first_of_equals():
    trials = [
        trial.replace(state="complete", value=value)
        for trial, value in zip(
            ask(read_space(SPACE, "ippo")[0], [], 3, seed=0), (-2.0, -1.0, -1.0), strict=True
        )
    ]
    assert best(trials).number == 1
    assert best([trials[0].replace(state="failed", value=None)]) is None


# --- Spaces -------------------------------------------------------------------------------------

BASE = configure("perla-ippo", "default", {})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "expected settings and their values"),
        ({"lr": 0.1}, r"lr: expected a list of values or \{"),
        ({"lr": []}, "lr.*length >= 1|choices"),
        ({"lr": {"low": 1e-2, "high": 1e-3}}, "low 0.01 is not below high 0.001: an empty range"),
        ({"lr": {"low": 0, "high": 1e-3, "log": True}}, "a range with log lies above 0"),
        ({"lr": {"low": 1e-3}}, "expected choices, or low and high"),
        ({"lr": {"low": 1e-3, "hihg": 1}}, "did you mean 'high'"),
        ({"lr": {"low": "a", "high": 1}}, r"`\$\.lr\.low`|low = 'a'"),
        ({"lr": [1e-3, 1e-3]}, "a choice occurs twice"),
        ({"hidden_size": {"low": 32, "high": 100, "step": 32}}, "the last number below it is 96"),
        ({"lr": {"low": 1e-3, "high": 1, "log": True, "step": 0.1}}, "exclude each other"),
        ({"k": [1], "num_samples": [2]}, "occurs twice, also by its second name"),
        ({"lr": {"choices": [1e-3], "when": {"loss": "huber"}}}, "`when` names loss"),
        ({"loss": ["squared"], "lr": {"choices": [1e-3], "when": {"loss": "huber"}}}, "no choice"),
    ],
)  # fmt: skip
def test_mistakes_in_a_space_are_named(space, message):
    with pytest.raises(UserError, match=message):
        read_space(space, "perla-ippo")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"lrr": [1e-3]}, "did you mean 'lr'"),
        ({"learning_rate": [1e-3]}, "here it is lr"),
        ({"mixer": ["qmix"]}, "mixer is decided by the method"),
        ({"lr": [1e-3, -1.0]}, "lr -1.0: expected a number > 0"),
        ({"hidden_size": {"low": 0, "high": 4}}, "hidden_size 0: expected a whole number >= 1"),
        ({"hidden_size": {"low": 1.5, "high": 4}}, "hidden_size 1.5: expected a whole number"),
        ({"actor_network": {"low": 1, "high": 4}}, "actor_network 1: expected one of mlp, gru"),
        ({"normalize_rewards": [0, 1]}, "normalize_rewards 0: expected true or false"),
        ({"returns": ["gae", "n-step"], "n_step": [5]}, 'add "when": {"returns": "n-step"}'),
        ({"num_samples": [1, 2]}, "num_samples: is in the space, and is given beside it"),
        ({"gamma": [0.9]}, "gamma: is in the space, and is given beside it"),
    ],
)
def test_values_that_the_method_refuses_are_named(space, message):
    with pytest.raises(UserError, match=message):
        check_space(read_space(space, "perla-ippo")[0], "perla-ippo", BASE, ["gamma", "k"])


def test_a_setting_of_a_variant_is_drawn_with_the_variant_only():
    space = read_space(
        {
            "n_step": {"low": 1, "high": 9, "when": {"returns": "n-step"}},
            "returns": ["gae", "n-step"],
        },
        "ippo",
    )[0]
    check_space(space, "ippo", configure("ippo", "default", {}))
    drawn = [trial.settings for trial in ask(space, [], 8, seed=0)]
    assert {each["returns"] for each in drawn} == {"gae", "n-step"}
    assert all(("n_step" in each) == (each["returns"] == "n-step") for each in drawn)
    assert consistent(space, {"returns": "gae", "n_step": 3}) == {"returns": "gae"}


def test_the_papers_space_is_its_table_3():
    space, left = read_space("paper", "perla-ippo")
    assert not left
    check_space(space, "perla-ippo", BASE)
    assert combinations(space) == 3 * 2 * 2 * 2 * 3 * 2 * 2 * 2
    assert {"estimator", "num_samples"} == set(read_space("paper", "ippo")[1])
    with pytest.raises(UserError, match="trials 9: the space has 6 different settings"):
        check_trials(read_space({"lr": [1e-3, 1e-4], "num_layers": [1, 2, 3]}, "ippo")[0], 9)


def test_a_space_may_be_of_optunas_distributions_or_a_file(tmp_path):
    from optuna import distributions

    found = read_space(
        {
            "lr": distributions.FloatDistribution(1e-4, 1e-2, log=True),
            "hidden_size": distributions.IntDistribution(32, 96, step=32),
            "actor_network": distributions.CategoricalDistribution(["mlp", "gru"]),
        },
        "ippo",
    )[0]
    file = tmp_path / "space.json"
    file.write_text(
        '{"lr": {"low": 1e-4, "high": 1e-2, "log": true}, "actor_network": ["mlp", "gru"],'
        '"hidden_size": {"low": 32, "high": 96, "step": 32}}'
    )
    assert found == read_space(str(file), "ippo")[0]
    for name, message in (("papr", "did you mean 'paper'"), ("no/file.json", "no such file")):
        with pytest.raises(UserError, match=message):
            read_space(name, "ippo")
    file.write_text("{")
    with pytest.raises(UserError, match=r"space\.json: damaged"):
        read_space(str(file), "ippo")


# --- Studies ------------------------------------------------------------------------------------


def test_a_study_ends_with_the_best_settings_its_budget_and_a_comparison(tmp_path, trainer):
    made, history = searched(tmp_path, trials=12)
    states = {trial.state for trial in history}
    assert states == {"complete", "pruned", "failed"}
    assert all(
        trial.reason == f"lr = {trial.settings['lr']:g}: far too much"
        for trial in history
        if trial.state == "failed"
    )
    chosen = best(history)
    assert abs(math.log10(chosen.settings["lr"] / 0.003)) < 0.5
    budget = made.budget(history)
    assert (budget.trials, budget.complete + budget.pruned + budget.failed) == (12, 12)
    assert budget.steps == sum(trial.steps for trial in history) >= 100 * 2 * budget.complete
    words = report.budget_in_words(made, history)
    assert f"12 trials ({budget.complete} complete, {budget.pruned} pruned" in words
    assert f"{budget.steps:,} environment steps" in words
    before, after = report.report_cells(made, history, REPORTING)
    assert (before.method, after.method) == ("ippo", "ippo tuned")
    assert before.run.seeds == after.run.seeds == REPORTING
    assert after.run.config.lr == chosen.settings["lr"]
    assert before.run.config == made.plan.config


def test_best_json_is_a_run_for_perla_train(tmp_path, trainer):
    made, history = searched(tmp_path / "study", trials=4)
    path = report.write_best(made, history, REPORTING)
    run = read_run(path, env=None, trust=())
    assert run.seeds == REPORTING
    assert run.config.lr == best(history).settings["lr"]


def test_more_trials_go_on_with_the_study(tmp_path, trainer, monkeypatch):
    few = searched(tmp_path, trials=4)[1]
    more = searched(tmp_path, trials=6)[1]
    assert more[:4] == few
    assert len(more) == 6
    monkeypatch.setattr(execute, "train", None)
    assert searched(tmp_path, trials=6)[1] == more, "nothing runs twice"


def test_another_study_in_the_folder_is_refused(tmp_path, trainer):
    searched(tmp_path, trials=1, parallel=1)
    with pytest.raises(UserError, match=r"another steps \(100, not 200\); choose another --out"):
        open_study(tmp_path, plan(steps=200))
    with pytest.raises(UserError, match="another space; choose"):
        open_study(tmp_path, plan({"lr": [1e-3]}))
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(UserError, match=r"study\.json"):
        open_study(tmp_path, plan())


def test_settings_that_exclude_each_other_fail_and_the_rest_goes_on(tmp_path, trainer):
    space = {"num_minibatches": [1, 1000], "lr": {"low": 1e-3, "high": 1e-2}}
    history = searched(tmp_path, trials=4, space=space)[1]
    failed = [trial for trial in history if trial.state == "failed"]
    assert all(trial.settings["num_minibatches"] == 1000 for trial in failed)


def test_a_study_without_a_complete_trial_says_why(tmp_path, trainer):
    with pytest.raises(UserError, match=r"no trial is complete; the first: lr = 0\.0[56]: far"):
        searched(tmp_path, trials=2, space={"lr": [0.05, 0.06]})
    with pytest.raises(UserError, match="unknown metric 'retrn'; did you mean 'return'"):
        searched(tmp_path / "metric", trials=1, metric="retrn")


# --- Kills --------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def test_a_study_killed_at_any_write_goes_on_as_if_it_had_not_been(tmp_path, trainer, monkeypatch):
    whole = outcomes(searched(tmp_path / "whole", trials=4, parallel=2)[1])
    write, rest = study.write_atomic, []

    def dies(*args, **options):
        if rest.pop():
            raise Killed
        write(*args, **options)

    monkeypatch.setattr(study, "write_atomic", dies)
    for kill in range(0, 100, 2):  # The write at which it is killed.
        rest[:] = [False] * 1000 + [True] + [False] * kill
        folder = tmp_path / f"kill{kill}"
        try:
            searched(folder, trials=4, parallel=2)
            break
        except Killed:
            rest[:] = [False] * 1000
            assert outcomes(searched(folder, trials=4, parallel=2)[1]) == whole
    assert kill >= 4


SCRIPT = """
import os, signal, sys
from pathlib import Path
import pytest, fake_loop, test_tune
from perla.suites import display

pieces = []

class Mortal(test_tune.RateTrainer):
    def train(self, states, until, updates):
        pieces.append(until)
        if len(pieces) == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train(states, until, updates)

fake_loop.install(pytest.MonkeyPatch(), Mortal)
made = test_tune.open_study(Path(sys.argv[1]), test_tune.plan(parallel=2))
made.search(4, test_tune.Here, display.Silent, lambda text: None)
"""


def test_a_study_survives_sigkill(tmp_path, trainer):
    here, cut = Path(__file__).parent, tmp_path / "cut"
    paths = os.pathsep.join([str(here), str(here.parent / "src")])
    command = [sys.executable, "-c", SCRIPT, str(cut)]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths})
    assert ended.returncode == -signal.SIGKILL
    begun = open_study(cut, plan(parallel=2)).history()
    assert [trial.state for trial in begun[2:]] == ["running"] * 2
    assert (cut / "trials/0002/metrics.jsonl").exists()
    assert not (cut / "trials/0002/summary.json").exists()
    history = searched(cut, trials=4, parallel=2)[1]
    assert outcomes(history) == outcomes(searched(tmp_path / "whole", trials=4, parallel=2)[1])


# --- Seeds --------------------------------------------------------------------------------------


def test_no_seed_is_for_tuning_and_for_reporting(tmp_path, trainer):
    check_seeds((100, 101), (0, 1))
    with pytest.raises(UserError, match="seed 1 is for tuning and for reporting"):
        check_seeds((1, 101), (0, 1))
    made, history = searched(tmp_path, trials=1, parallel=1)
    for function in (report.report_cells, report.write_best):
        with pytest.raises(UserError, match="seeds 100,101 are for tuning and for reporting"):
            function(made, history, (100, 0, 101))


def test_a_range_from_0_is_recorded_whole(tmp_path, trainer):
    made, history = searched(tmp_path, trials=2, space={"ent_coef": {"low": 0, "high": 0.1}})
    assert report.facts(made, history)["space"] == {"ent_coef": {"low": 0, "high": 0.1}}


def test_this_process_stops_a_trial_at_an_evaluation(tmp_path, trainer):
    run = plan().run({}, (100,))
    tasks = [Task(run, tmp_path / name) for name in ("stopped", "whole")]
    here = compare.Here(partial(perla.make, ENV), stop=lambda task: task is tasks[0])
    kinds = [event.kind for event in here.carry_out(tasks)]
    assert kinds == ["started", "stopped", "started", "finished"]
    assert not (tmp_path / "stopped" / "summary.json").exists()


def test_trials_are_results_of_no_comparison_and_no_report(tmp_path, trainer):
    made, history = searched(tmp_path, trials=2)
    folder = made.trial_folder(history[0])
    assert (folder / "metrics.jsonl").exists()
    for path in (tmp_path, tmp_path / "trials", folder):
        with pytest.raises(UserError, match=r"trial of perla tune|no run folder"):
            gather.find(path)
    cell = report.report_cells(made, history, REPORTING)[0]
    execute.train(cell.run, tmp_path / "cells" / "run", pictures=False)
    assert [source.path for source in gather.find(tmp_path)] == [tmp_path / "cells/run"]


# --- Executors ----------------------------------------------------------------------------------


class Patient:
    """A worker process that runs until it is stopped."""

    code = None

    def poll(self):
        return self.code

    def reason(self):
        return "stopped"

    def stop(self):
        self.code = 143

    def wait(self):
        pass


def test_a_task_is_stopped_and_the_rest_goes_on():
    class Quick(Patient):
        code = 0

    looked = []

    def stop(task):
        looked.append(task)
        return task == "slow" and looked.count("slow") == 3

    def start(task, slot):
        return Patient() if task == "slow" else Quick()

    events = list(processes.run_tasks(["slow", "quick"], 1, start, retries=2, stop=stop))
    found = [(event.position, event.kind) for event in events]
    assert found == [(0, "started"), (0, "stopped"), (1, "started"), (1, "finished")]


def test_on_ray_a_task_that_is_stopped_is_not_retried(tmp_path):
    run = plan().run({}, TUNING)
    task = ray.RemoteTask(Task(run, tmp_path / "run"))
    assert task.receive(ray.Ended(None, "cancelled"), 3).kind == "retried"
    task.stopping = True
    assert task.receive(ray.Ended(None, "cancelled"), 3).kind == "stopped"
    assert task.receive(ray.Ended(0), 3).kind == "finished", "it was faster"


@pytest.mark.slow
def test_a_worker_of_a_pruned_trial_ends_resumable(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "PROGRAM", FAKE)
    run = plan(steps=1000, num_evaluations=50).run({"lr": fake_worker.SLOW}, TUNING)
    task = Task(run, tmp_path / "run")
    executor = local.Local(1, stop=lambda task: (task.folder / "metrics.jsonl").exists())
    assert [event.kind for event in executor.carry_out([task])] == ["started", "stopped"]
    assert not Folder.open(task.folder).finished
    assert [event.kind for event in local.Local(1).carry_out([task])] == ["started", "finished"]


# --- Commands -----------------------------------------------------------------------------------

FLAGS = ("tune", "ippo", "--env", ENV, "--steps", "100", "--num-evaluations", "5", "--num-envs",
         "2", "--rollout-length", "5", "--tuning-seeds", "100,101")  # fmt: skip


@pytest.fixture
def here(trainer, monkeypatch, tmp_path):
    """Commands carry out runs in this process and draw nothing; the list has the seeds of each."""
    ran = []

    def make(processes=None, *, stop=never):
        return Here(stop, ran)

    monkeypatch.setattr(results, "draw", lambda figure, path: None)
    monkeypatch.setattr(local, "Local", make)
    monkeypatch.setattr("perla.api.tune.Local", make)
    monkeypatch.chdir(tmp_path)
    Path("space.json").write_text(json.dumps(SPACE))
    return ran


def refused(capsys, *argv):
    assert main([*FLAGS, *argv]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("perla: ")
    assert error.count("\n") == 1
    return error


def test_tune_reports_the_best_settings_on_other_seeds(here, capsys):
    command = [*FLAGS, "--space", "space.json", "--trials", "6", "--seeds", "3", "--out", "study"]
    assert main([*command, "--quiet"]) == 0
    output = capsys.readouterr().out
    assert "Best: trial" in output
    assert "Tuning took 6 trials" in output
    assert "on seeds 100, 101, which the results below leave out" in " ".join(output.split())
    assert here == [TUNING] * 6 + [REPORTING] * 2
    summary = json.loads(Path("study/summary.json").read_text())
    assert [method["name"] for method in summary["methods"]] == ["ippo", "ippo tuned"]
    assert summary["budget"]["seeds"] == 3
    tuned = summary["tuning"]
    assert (tuned["trials"], tuned["tuning_seeds"]) == (6, [100, 101])
    assert tuned["steps"] > 0
    layout = json.loads(Path("study/marl_eval.json").read_text())
    assert seeds_of(layout) == {"seed_0", "seed_1", "seed_2"}
    shown = sources.read([Path("study")])
    assert {seed for entry in shown.entries for seed in entry.curves.seeds} == set(REPORTING)
    assert [each.tuning_seeds for each in shown.tuned] == [[100, 101]]
    page, _ = build.build([Path("study")], version="0", replays=0)
    assert b"Tuning of ippo" in page
    assert b"tuning seeds, of no result above" in page
    assert "seeds 100,101 are for" in refused(capsys, *command[len(FLAGS) :], "--seeds", "100,101")


def seeds_of(layout):
    """The names of seeds in a marl-eval file."""
    return {seed for maps in layout.values() for algos in maps.values() for algo in algos.values()
            for seed in algo}  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--trials", "0"], "--trials 0: expected a whole number >= 1"),
        (["--trials", "x"], "--trials x: expected"),
        (["--space", "papr"], "did you mean 'paper'"),
        (["--space", "no.json"], "no.json: no such file"),
        (["--seeds", "100,"], "seed 100 is for tuning and for reporting"),
        (["--tuning-seeds", "3"], "seeds 0,1,2 are for tuning and for reporting"),
        (["--executor", "slurm"], "tune stops single trials"),
        (["--search", "grid"], "--search grid: expected one of tpe, random"),
        (["--pruner", "best"], "--pruner best: expected one of median, none"),
        (["--lr", "0.1", "--space", "space.json"], "lr: is in the space, and is given beside it"),
        (["--trialz", "3"], "did you mean '--trials'"),
        (["--env-option", "x"], "expected NAME=VALUE"),
    ],
)
def test_mistakes_end_in_one_line(here, capsys, argv, message):
    if "--space" not in argv:
        argv = [*argv, "--space", "space.json"]
    assert message in refused(capsys, *argv)
    assert not here


def test_without_optuna_the_line_names_its_package(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "optuna" in refused(capsys, "--space", "space.json", "--trials", "2")


def test_a_dry_run_says_the_cost(here, capsys, monkeypatch):
    monkeypatch.setattr(cost.Machine, "measure", lambda: cost.Machine(1.0, 1.0))
    monkeypatch.setattr(cost.Costs, "seconds", lambda self, run: 10.0 * len(run.seeds))
    assert main([*FLAGS, "--space", "space.json", "--trials", "7", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "1,400" in output, "7 trials of 2 seeds of 100 steps"
    assert "about 5:40 on this machine" in " ".join(output.split())
    assert not here
    assert not list(Path().glob("runs*"))


def test_python_has_the_same_search(here):
    facts = {"steps": 100, "num_evaluations": 5, "tuning_seeds": TUNING, "seeds": 3, **SHORT}
    found = perla.tune(ENV, "ippo", space=SPACE, trials=4, out="study", quiet=True, **facts)
    assert found.settings == best(found.trials).settings
    assert {seed for run in found.runs for seed in run.seeds} == set(REPORTING)
    assert found.budget.trials == 4
    assert list(found.table()["state"]) == [trial.state for trial in found.trials]
    assert "Best: trial" in repr(found)
    assert json.loads(Path("study/summary.json").read_text())["tuning"]["trials"] == 4
    with pytest.raises(UserError, match="seed 100 is for tuning and for reporting"):
        perla.tune(ENV, "ippo", space=SPACE, out="study", **facts | {"seeds": [100]})


@pytest.mark.slow
def test_real_training_is_tuned_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("space.json").write_text(json.dumps({"lr": [1e-4, 1e-3], "hidden_size": [8, 16]}))
    command = [*FLAGS, "--space", "space.json", "--trials", "3", "--seeds", "3", "--out", "study"]
    assert main([*command, "--parallel", "2", "--quiet"]) == 0
    assert "Tuning took 3 trials (3 complete" in " ".join(capsys.readouterr().out.split())
    assert main(["report", "study", "--replays", "0", "--quiet"]) == 0
