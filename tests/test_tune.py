"""`perla tune`: it beats random search, survives a kill anywhere, and reports no tuning seed."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fake_loop
from perla.analysis import gather
from perla.analysis.load import find
from perla.cli import main
from perla.config import from_json
from perla.errors import UserError
from perla.methods.settings import configure
from perla.report import sources
from perla.runs import execute
from perla.suites import display, local
from perla.suites.executors import Event, never
from perla.tuning import report, search, study
from perla.tuning.search import Rule, Trial, ask, best
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
    fake_loop.install(monkeypatch, RateTrainer)


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


def trials_needed(way, seed, batch, most=40):
    """The trials after which a smooth toy objective is nearly at its planted optimum."""
    space = read_space({"lr": {"low": 1e-5, "high": 1e-1, "log": True},
                        "ent_coef": {"low": 0.0, "high": 0.1}}, "ippo")[0]  # fmt: skip
    history = []
    while len(history) < most:
        for trial in ask(space, history, batch, seed=seed, search=way):
            lr, entropy = trial.settings["lr"], trial.settings["ent_coef"]
            value = -((math.log10(lr) + 3) ** 2) - ((entropy - 0.03) / 0.03) ** 2
            history.append(trial.replace(state="complete", value=value))
    good = [trial.number for trial in history if trial.value > -0.05]
    return 1 + min(good, default=most)


def test_a_planted_optimum_is_found_in_fewer_trials_than_by_random_search():
    tpe = [trials_needed("tpe", seed, batch=4) for seed in range(20)]
    random = [trials_needed("random", seed, batch=40) for seed in range(20)]
    assert np.mean(tpe) < 0.85 * np.mean(random)
    assert sum(np.less(tpe, random)) > 2 * sum(np.less(random, tpe))
