"""The names of other libraries' settings lead to ours, in one line."""

import pytest

from perla.cli import main
from perla.cli.flags import flag_name
from perla.errors import UserError
from perla.methods.peers import PEERS, translate
from perla.methods.recipes import RECIPES, make
from perla.methods.settings import available, configure, every_setting, fixed_fields

RUN = {"env", "env_option", "steps", "seeds", "num_evaluations", "eval_episodes",
       "absolute_episodes"}  # fmt: skip
"""Flags of `perla train` that belong to the run and not to a method."""

SAME = ("num-envs", "gae-lambda", "ent-coef", "gamma", "num-samples", "update-epochs",
        "num-minibatches", "anneal-lr", "max-grad-norm", "clip-eps", "batch-size",
        "buffer-size")  # fmt: skip
"""Flags of other libraries that are ours too."""

HINTS = {
    "--learning-rate": "--lr",
    "--use-rnn": "--actor-network gru",
    "--clip-coef": "--clip-eps",
    "--n-steps": "--rollout-length",
    "--hidden-dim": "--hidden-size",
    "--q-nstep": "--n-step",
    "--entropy-coef": "--ent-coef",
    "--t-max": "--steps",
    "--batch-size-run": "--num-envs",
    "--use-gae": "--returns gae",
    "--share-policy": "--parameter-sharing shared|separate",
    "--total-timesteps": "--steps",
    "--num-steps": "--rollout-length",
    "--vf-coef": "--value-coef",
    "--norm-adv": "--normalize-advantages",
    "--ppo-epoch": "--update-epochs",
    "--rnn-hidden-dim": "--hidden-size",
    "--standardise-rewards": "--normalize-rewards",
    "--obs-agent-id": "--agent-ids",
    "--lr-critic": "--critic-lr",
    "--n-rollout-threads": "--num-envs",
    "--episode-length": "--rollout-length",
    "--env-id": "--env",
    "--seed": "--seeds (how many; `3,` is seed 3 alone)",
    "--map-name": "--env smac:MAP",
    "--test-interval": "--num-evaluations (how many, not how often)",
    # perla's first names
    "--copies": "--num-envs",
    "--horizon": "--rollout-length",
    "--lam": "--gae-lambda",
    "--epochs": "--update-epochs",
    "--fit": "--regress",
}


@pytest.fixture
def refusal(capsys):
    def run(*argv):
        assert main(["train", *argv]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        return error.removeprefix("perla: ").rstrip()

    return run


@pytest.mark.parametrize(("theirs", "ours"), HINTS.items())
def test_a_flag_of_another_library_is_translated(refusal, theirs, ours):
    assert refusal("perla-ippo", theirs, "1") == f"unknown flag {theirs!r}; here it is {ours}"


def test_the_hint_is_the_setting_of_the_learner_at_hand(refusal):
    for theirs in ("--lam", "--td-lambda"):
        assert refusal("pqn-vdn", theirs, "1").endswith("here it is --q-lambda")


def test_the_hint_names_our_flag_even_if_another_one_looks_more_alike(refusal):
    line = refusal("qmix", "--epsilon-anneal-time", "1000")
    assert line == "unknown flag '--epsilon-anneal-time'; here it is --epsilon-decay-steps"


@pytest.mark.parametrize(
    ("algo", "theirs", "hint"),
    [
        ("iql", "--clip-coef", "--clip-eps, and --clip-eps is no setting of iql"),
        ("ippo", "--epsilon-anneal-time",
         "--epsilon-decay-steps, and --epsilon-decay-steps is no setting of ippo"),
        ("qmix", "--lr-critic", "--critic-lr, and --critic-lr is no setting of qmix"),
        ("ippo", "--mixer-embedding-dim", "--mixing-embed-dim, and --mixing-embed-dim belongs to "
         "qmix, ow-qmix, cw-qmix, maic, and this run is ippo"),
    ],
)  # fmt: skip
def test_the_hint_says_so_if_the_method_lacks_the_setting(refusal, algo, theirs, hint):
    assert refusal(algo, theirs, "1") == f"unknown flag {theirs!r}; here it is {hint}"


def test_the_method_decides_some_settings_of_other_libraries(refusal):
    line = refusal("ippo", "--critic-type", "cv_critic")
    assert "here the method decides it: ippo, mappo, perla-ippo" in line


def test_the_hint_says_so_if_the_command_lacks_the_flag(capsys):
    assert main(["diagnose", "--test-nepisode", "20"]) == 2
    error = capsys.readouterr().err
    assert "here it is --eval-episodes, which cannot be set here" in error


@pytest.mark.parametrize("name", ["--Learning-Rate", "LEARNING_RATE", "--no-learning_rate"])
def test_spelling_does_not_matter(name):
    assert translate(name) == ("lr", "")


def test_a_name_of_no_library_is_not_translated():
    assert translate("--frobnicate") is None


def test_python_is_translated_too():
    with pytest.raises(UserError, match=r"unknown setting 'learning_rate'; here it is lr$"):
        make("ippo", learning_rate=1e-3)
    with pytest.raises(UserError, match=r"unknown setting 'use_rnn'; here it is actor_network gru"):
        configure("ippo", "default", {"use_rnn": True})


@pytest.mark.parametrize("name", SAME)
def test_names_that_are_the_same_are_understood(name):
    assert flag_name(name.replace("-", "_")) == f"--{name}"
    assert name.replace("-", "_") in every_setting()


@pytest.mark.parametrize(("theirs", "entry"), PEERS.items())
def test_every_entry_is_true(theirs, entry):
    """The target exists, a value for it is allowed, and the key is no name of ours."""
    assert theirs == theirs.lower()
    assert theirs not in {*every_setting(), *fixed_fields(), *RUN}
    ours, value = translate(theirs)
    assert ours in {*every_setting(), *fixed_fields(), *RUN}
    if ours in every_setting() and value and value[0] != "(":
        algo = next(name for name in RECIPES if ours in available(make(name)))
        for one in value.split("|"):
            configure(algo, "default", {ours: one})
