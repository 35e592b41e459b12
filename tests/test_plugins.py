"""Parts of other packages: registered in Python, and by entry points of an installed package."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perla
from perla import plugins
from perla.cli import main
from perla.config import from_json, to_json
from perla.distributions import Categorical
from perla.envs import registry
from perla.errors import UserError
from perla.marginal.estimators import Enumeration, create_estimator
from perla.methods.estimators import ESTIMATORS, Estimator, Sampled
from perla.methods.method import Method
from perla.methods.recipes import RECIPES, Recipe
from perla.methods.settings import configure, every_setting
from perla.methods.td import MIXERS, TD, QMIXMixer, VDNMixer
from perla.nets.mixers import MixerInput
from perla.runs.spec import Run

ROOT = Path(__file__).parent.parent
EXTENSION = ROOT / "examples" / "extension"
GUIDE = ROOT / "docs" / "extending.md"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the example package installed in it."""
    source, target = tmp_path_factory.mktemp("source") / "extension", tmp_path_factory.mktemp("to")
    shutil.copytree(EXTENSION, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(target), str(source)], check=True)
    return target


@pytest.fixture
def command(installed):
    """Runs `perla` in a process that has the example package."""
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "perla", *argv],
            env=os.environ | {"PYTHONPATH": path, "COLUMNS": "100"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def example(monkeypatch):
    """The modules of the example package, imported from its sources."""
    monkeypatch.syspath_prepend(str(EXTENSION))
    names = [path.stem for path in (EXTENSION / "perla_extension").glob("[a-z]*.py")]
    yield types.SimpleNamespace(
        **{name: importlib.import_module(f"perla_extension.{name}") for name in names}
    )
    for name in [name for name in sys.modules if name.startswith("perla_extension")]:
        del sys.modules[name]


# --- An installed package -----------------------------------------------------------------------


def test_the_lists_have_the_parts_of_an_installed_package(command):
    for what, names in {
        "algos": ("reinforce", "linear-mix"),
        "envs": ("meeting:5",),
        "estimators": ("antithetic",),
        "mixers": ("linear",),
    }.items():
        listed = [line.split()[0] for line in command("list", what).stdout.splitlines() if line]
        assert set(names) <= set(listed)


def test_the_help_of_a_method_has_the_flags_of_its_parts(command):
    assert "--linear-hidden N" in command("train", "linear-mix", "--help").stdout
    assert "--pairs N" in command("train", "perla-mappo", "--help").stdout
    assert "with --estimator antithetic:" in command("train", "perla-mappo", "--help").stdout
    text = command("train", "reinforce", "--help").stdout
    assert "reinforce: policy gradients of whole episodes" in text
    assert "--num-envs N" in text
    assert "--clip-eps" not in text


def test_wrong_flags_of_a_part_are_refused_in_a_line(command):
    refused = command("train", "perla-ippo", "--pairs", "2").stderr
    assert refused == (
        "perla: --pairs belongs to --estimator antithetic; this run has --estimator auto\n"
    )
    refused = command("train", "qmix", "--linear-hidden", "2").stderr
    assert refused == "perla: --linear-hidden belongs to linear-mix, and this run is qmix\n"
    refused = command("train", "reinforce", "--env", "meeting:one").stderr
    assert "such as meeting:5" in refused


@pytest.mark.slow
def test_a_suite_trains_and_compares_all_four(command, tmp_path):
    small = {
        "env": "meeting:3", "env_options": {"limit": 4}, "steps": 256, "seeds": 2,
        "num_evaluations": 2, "eval_episodes": 4, "absolute_episodes": 4,
    }  # fmt: skip
    methods = {
        "reinforce": {"num_envs": 4, "hidden_size": 4},
        "linear-mix": {"linear_hidden": 4, "hidden_size": 4, "num_envs": 4},
        "perla-ippo": {
            "estimator": "antithetic", "pairs": 2, "hidden_size": 4, "num_envs": 4,
            "rollout_length": 8,
        },
    }  # fmt: skip
    grids = [small | {"algo": algo, "settings": given} for algo, given in methods.items()]
    suite = {"name": "extension", "grids": grids}
    path = tmp_path / "suite.json"
    path.write_text(json.dumps(suite))
    done = command("suite", str(path), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    folders = sorted(path.parent for path in (tmp_path / "out/cells").rglob("summary.json"))
    kinds = {json.loads((f / "config.json").read_text())["run"]["config"]["kind"] for f in folders}
    assert kinds == {"reinforce", "td", "ppo"}
    compared = command("compare", *map(str, folders), "--out", str(tmp_path / "compared"))
    assert compared.returncode == 0, compared.stderr
    assert "reinforce" in compared.stdout
    assert command("resume", str(folders[0])).returncode == 0


def test_without_the_package_its_runs_are_refused_in_a_line():
    run = Run(env="matrix:climbing", algo="vdn", config=TD(), steps=1000)
    text = to_json(run).replace(b'"kind": "td"', b'"kind": "reinforce"')
    with pytest.raises(UserError, match=r"unknown kind 'reinforce'.* - at `\$\.config`"):
        from_json(text, Run, source="config.json")


# --- In Python ----------------------------------------------------------------------------------


def test_parts_are_known_as_soon_as_they_are_registered(example):
    assert "pairs" not in every_setting()
    with ESTIMATORS.added("antithetic", example.antithetic.Antithetic):
        config = configure("perla-ippo", "default", {"estimator": "antithetic", "pairs": "3"})
        assert config.value.estimator == example.antithetic.Antithetic(pairs=3)
        assert from_json(to_json(config), Method, source="it") == config
    assert "pairs" not in every_setting()
    with pytest.raises(UserError, match="expected one of auto, sampled"):
        config.value.replace(estimator=example.antithetic.Antithetic())


def test_train_takes_what_is_registered(example):
    with (
        RECIPES.added("reinforce", example.reinforce.RECIPE),
        registry.FAMILIES.added("meeting", example.meeting),
    ):
        result = perla.train(
            "meeting:3", "reinforce", steps=64, num_envs=4, hidden_size=4, num_evaluations=1,
            eval_episodes=2, absolute_episodes=2, env_options={"limit": 4},
        )  # fmt: skip
    assert result.records[-1]["step"] >= 64


def test_registering_again_replaces_what_was_registered(example):
    first, second = (Recipe(TD, mixer=VDNMixer(), about=about) for about in ("one", "two"))
    with RECIPES.added("mine", first):
        perla.register_algorithm("mine", second)
        assert RECIPES["mine"].about == "two"


@pytest.mark.parametrize(
    ("known", "name", "part", "message"),
    [
        (RECIPES, "ippo", Recipe(TD, about=""), "'ippo': the name is taken"),
        (RECIPES, "mine", TD, "is no Recipe"),
        (registry.FAMILIES, "lbf", registry, "'lbf': the name is taken"),
        (registry.FAMILIES, "mine", json, "has no function `make_env`"),
        (MIXERS, "vdn", VDNMixer, "'vdn': the name is taken"),
        (MIXERS, "other", QMIXMixer, "tag of QMIXMixer is 'qmix'"),
        (ESTIMATORS, "mine", VDNMixer, "no subclass of Estimator"),
    ],
)
def test_a_part_of_another_kind_is_refused(known, name, part, message):
    with pytest.raises(UserError, match=message):
        known.register(name, part)


def test_a_part_without_create_is_refused():
    class Nothing(Estimator, tag="nothing", frozen=True):
        """Nothing."""

    with pytest.raises(UserError, match="Nothing has no method `create`"):
        perla.register_estimator(Nothing)


def test_a_broken_package_is_named(monkeypatch, capsys):
    point = EntryPoint("broken", "json:nothing", "perla.mixers")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
    monkeypatch.setattr(MIXERS, "_parts", dict(MIXERS._parts))
    monkeypatch.setattr(MIXERS, "_searched", False)
    assert main(["list", "mixers"]) == 2
    error = capsys.readouterr().err
    assert "entry point perla.mixers: broken = json:nothing: AttributeError" in error
    assert error.count("\n") == 1


# --- The parts of the example -------------------------------------------------------------------


def test_antithetic_pairs_are_unbiased_and_opposite(example):
    settings = example.antithetic.Antithetic(pairs=4000)
    estimator = create_estimator(settings, 2, 3)
    policy = Categorical(jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])))
    payoff = jnp.arange(9.0).reshape(3, 3)

    def f(action):
        return payoff[action[0], action[1]] * jnp.ones((2, 1))

    estimate = estimator.expectation(f, policy, jax.random.key(0))
    points = estimator.points(jax.random.key(0), (2,))
    np.testing.assert_allclose(points[::2] + points[1::2], 1.0, atol=1e-6)
    some = estimator.points(jax.random.key(0), (2,), jnp.array([4, 5]))
    np.testing.assert_array_equal(some, points[4:6])
    joint = policy.probs[0] @ payoff @ policy.probs[1]
    np.testing.assert_allclose(estimate[:, 0], joint, atol=0.15)
    assert not isinstance(estimator, Enumeration)


def test_a_lattice_is_unbiased_and_has_less_noise_than_independent_draws(example):
    policy = Categorical(jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])))
    payoff = jnp.arange(9.0).reshape(3, 3)

    def f(action):
        return payoff[action[0], action[1]] * jnp.ones((2, 1))

    def estimates(settings):
        estimator, keys = create_estimator(settings, 2, 3), jax.random.split(jax.random.key(0), 500)
        return jax.vmap(lambda key: estimator.expectation(f, policy, key)[0, 0])(keys)

    lattice = estimates(example.lattice.Lattice(lattice_points=9))
    joint = policy.probs[0] @ payoff @ policy.probs[1]
    assert abs(lattice.mean() - joint) < 3 * lattice.std() / 500**0.5
    assert lattice.var() < 0.5 * estimates(Sampled(num_samples=9)).var()
    estimator = create_estimator(example.lattice.Lattice(lattice_points=9), 2, 3)
    points = estimator.points(jax.random.key(1), (2,))
    some = estimator.points(jax.random.key(1), (2,), jnp.array([4, 5]))
    np.testing.assert_array_equal(some, points[4:6])


def test_the_linear_mixer_is_monotonic(example):
    spec = registry.make_env("matrix:climbing").spec
    network = example.linear.Linear(linear_hidden=4).create(TD(), spec, jax.random.key(1))
    chosen, state = jax.random.normal(jax.random.key(2), (5, 2)), jnp.ones((5, spec.state))
    action, hidden = jnp.zeros((5, 2), int), chosen[..., None]

    def q(chosen):
        return network(MixerInput(chosen, chosen, action, state, hidden)).sum()

    assert (jax.grad(q)(chosen) >= 0).all()


def test_the_state_moves_the_value_of_every_joint_action_alike(example):
    spec = registry.make_env("matrix:climbing").spec
    network = example.state_bias.StateBias(bias_hidden=32).create(TD(), spec, jax.random.key(1))
    chosen = jax.random.normal(jax.random.key(2), (5, 2))
    action, hidden = jnp.zeros((5, 2), int), chosen[..., None]

    def q(chosen, state):
        state = jnp.full((5, spec.state), state)
        return network(MixerInput(chosen, chosen, action, state, hidden))

    bias = q(jnp.zeros((5, 2)), 1.0)
    np.testing.assert_allclose(q(chosen, 1.0), chosen.sum(-1, keepdims=True) + bias, atol=1e-6)
    assert (bias != q(jnp.zeros((5, 2)), 2.0)).any()


# --- The guide ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["antithetic", "linear", "meeting", "reinforce"])
def test_the_guide_shows_the_files(name):
    text = (EXTENSION / "perla_extension" / f"{name}.py").read_text()
    assert f"```python\n{text}```" in GUIDE.read_text()


def test_the_guide_shows_the_entry_points():
    text = (EXTENSION / "pyproject.toml").read_text()
    points = text[text.index('[project.entry-points."perla.algorithms"]') : text.index("[tool")]
    assert points.strip() in GUIDE.read_text()
