"""Pictures as observations: convolutions below all networks, and rows elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Tuple

import perla
from marks import slow
from perla.algos.create import create
from perla.envs.bridges.images import find_image
from perla.envs.custom import adopt
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.errors import UserError
from perla.flops import work
from perla.methods.recipes import make
from perla.nets.body import Body
from perla.nets.pictures import CHANNELS, Pictures, output_features
from test_gym import Team

SIDE = 6
SMALL = {"num_envs": 16, "rollout_length": 8, "hidden_size": 16, "quiet": True}


class Spot:
    """Two agents, each with a picture of its own: it is to name the half that the spot is in."""

    def __init__(self, image=True):
        shape = (SIDE, SIDE, 1)
        self.spec = Spec(
            "spot", 2, SIDE**2, 2 * SIDE**2, (2, 2), 1, "common",
            image=shape if image else None, state_image=(2, *shape) if image else None,
        )  # fmt: skip

    def observe(self, places):
        obs = jax.nn.one_hot(places, SIDE**2)
        return Observation(obs, obs.ravel(), jnp.ones((2, 2), bool))

    def reset(self, key):
        places = jax.random.randint(key, (2,), 0, SIDE**2)
        return places, self.observe(places)

    def step(self, key, state, action):
        right = action == (state % SIDE >= SIDE // 2)
        reward = jnp.full(2, right.mean(dtype=jnp.float32))
        seen = self.observe(state)
        return state, TimeStep(seen, reward, jnp.array(True), jnp.array(False), seen)

    def render(self, state):
        return np.zeros((SIDE, SIDE, 3), np.uint8)


# --- Networks -----------------------------------------------------------------------------------


def test_a_picture_s_output_is_that_of_xla_s_convolutions():
    pictures = Pictures.create(jax.random.key(0), (9, 5, 2), "torch")
    x = jax.random.normal(jax.random.key(1), (3, 9 * 5 * 2 + 4))
    image = np.asarray(x[0, :90]).reshape(9, 5, 2)
    for layer, stride in zip(pictures.layers, (2, 1), strict=True):
        weight, bias = np.asarray(layer.weight).reshape(3, 3, -1, CHANNELS), np.asarray(layer.bias)
        wanted = jax.lax.conv_general_dilated(
            image[None], weight, (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        image = np.maximum(np.asarray(wanted[0]) + bias, 0)
    y = pictures(x)
    assert y.shape == (3, output_features((9, 5, 2), x.shape[-1]))
    np.testing.assert_allclose(y[0, :-4], image.ravel(), atol=1e-5)
    np.testing.assert_array_equal(y[:, -4:], x[:, -4:])


@pytest.mark.parametrize(
    ("shape", "outputs"),
    [
        ((5, 5, 3), 5 * 5 * CHANNELS),
        ((84, 84, 4), 6 * 6 * CHANNELS),
        ((3, 10, 7, 1), 3 * 5 * 4 * CHANNELS),
        ((280, 480, 3), 5 * 8 * CHANNELS),
    ],
)
def test_the_outputs_of_pictures_are_counted(shape, outputs):
    assert output_features(shape, int(np.prod(shape)) + 2) == outputs + 2
    pictures = jax.eval_shape(
        lambda key: Pictures.create(key, shape, "orthogonal"), jax.random.key(0)
    )
    out = jax.eval_shape(lambda p, x: p(x), pictures, jnp.zeros((1, int(np.prod(shape)) + 2)))
    assert out.shape == (1, outputs + 2)


def test_several_pictures_share_the_convolutions():
    pictures = Pictures.create(jax.random.key(0), (2, 4, 4, 1), "orthogonal")
    one = Pictures(pictures.layers, (4, 4, 1))
    x = jax.random.normal(jax.random.key(1), (3, 32))
    both = jnp.concatenate([one(x[:, :16]), one(x[:, 16:])], -1)
    np.testing.assert_allclose(pictures(x), both, atol=1e-5)


def test_a_body_without_pictures_is_as_it_was():
    """The convolutions' numbers come from a key of their own."""
    settings = {
        "agents": 2, "outputs": 3, "core": "mlp", "hidden_size": 8, "num_layers": 2, "gain": 1.0,
        "init": "orthogonal", "norm": False, "ids": True, "parameter_groups": None,
    }  # fmt: skip
    key, shape = jax.random.key(0), (4, 4, 1)
    plain = Body.create(key, features=output_features(shape, 16), **settings)
    body = Body.create(key, features=16, picture=shape, **settings)
    assert plain.net.pictures is None
    heads = jax.tree.leaves(body.net.head), jax.tree.leaves(plain.net.head)
    for ours, theirs in zip(*heads, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_products_of_convolutions_are_counted():
    pictures = Pictures.create(jax.random.key(0), (4, 4, 3), "orthogonal")
    first, second = (2 * 4 * 4 * CHANNELS * 9 * inputs for inputs in (3, CHANNELS))
    assert work(pictures, jnp.zeros((5, 48))).flops == 5 * (first + second)


# --- Learners -----------------------------------------------------------------------------------

REPLAY = {"buffer_size": 2_000, "batch_size": 32}
LEARNERS = {
    "perla-mappo": {}, "coma": {}, "mat": {}, "pqn-vdn": {}, "qmix": REPLAY, "maddpg": REPLAY,
}  # fmt: skip
NETWORKS = {"perla-mappo": 2, "coma": 2, "maddpg": 4}
"""Networks that begin with convolutions: of actors and critics, and of their targets."""


@pytest.mark.parametrize("algo", LEARNERS)
def test_the_networks_of_every_learner_begin_with_convolutions(algo):
    def pictures(image):
        algorithm = create(make(algo), Spot(image=image).spec)
        learner = jax.eval_shape(algorithm.init, jax.random.key(0))
        leaves = jax.tree_util.tree_leaves_with_path(learner)
        names = [jax.tree_util.keystr(path) for path, _ in leaves]
        return {name.partition(".pictures")[0] for name in names if ".pictures" in name}

    networks = [name for name in pictures(image=True) if "optimiser" not in name]
    assert len(networks) >= NETWORKS.get(algo, 1)
    assert pictures(image=False) == set()


@pytest.mark.parametrize("algo", ["perla-ippo", *slow(*LEARNERS)])
def test_a_task_of_pictures_is_learnt(algo):
    settings = SMALL | LEARNERS.get(algo, {})
    run = perla.train(
        Spot(), algo, steps=3_000, seeds=1, num_evaluations=3, eval_episodes=64,
        absolute_episodes=64, lr=2e-3, **settings,
    )  # fmt: skip
    # Guessing earns 0.5.
    assert run.table()["final_return"].item() > 0.95


@pytest.mark.slow
def test_a_policy_of_pictures_is_exported_but_not_to_numpy(tmp_path):
    run = perla.train(
        Spot(), "ippo", steps=128, seeds=1, num_evaluations=1, eval_episodes=2,
        absolute_episodes=2, out=tmp_path / "run", **SMALL,
    )  # fmt: skip
    run.export(tmp_path / "policy.onnx", format="onnx")
    assert (tmp_path / "policy.onnx").exists()
    with pytest.raises(UserError, match="this is a network with convolutions; take jax or onnx"):
        run.export(tmp_path / "policy.npz", format="numpy")
    policy = run.policy()
    assert policy.act(np.zeros((2, SIDE**2))).shape == (2,)


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ((6, 6), r"spec.image = \(6, 6\): expected \(height, width, channels\)"),
        ((7, 6, 1), "has 42 numbers, and there are 36"),
        ((6, 6, 0), "expected"),
    ],
)
def test_a_wrong_shape_is_told_in_a_line(image, told):
    env = Spot()
    env.spec = Spec("spot", 2, SIDE**2, 2 * SIDE**2, (2, 2), 1, "common", image=image)
    with pytest.raises(UserError, match=told):
        adopt("ours:Spot", env)


# --- Other libraries' environments ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "image"),
    [
        ((84, 84, 3), np.uint8, (84, 84, 3)),
        ((3, 84, 60), np.uint8, (84, 60, 3)),
        ((84, 60), np.uint8, (84, 60, 1)),
        ((7, 7, 3), np.float32, (7, 7, 3)),
        ((5, 5, 5), np.float32, (5, 5, 5)),
        ((84, 60), np.float32, None),
        ((4, 84, 84, 3), np.uint8, None),
        ((9, 2, 4), np.float32, None),
        ((1, 9, 9), np.uint8, (9, 9, 1)),
        ((12,), np.uint8, None),
    ],
)
def test_arrays_that_are_pictures_are_told_from_others(shape, dtype, image):
    found = find_image(shape, dtype)
    assert (found.shape if found else None) == image


class Screens(Team):
    """Both agents see a picture of bytes, channels first; the state is one too if there is one."""

    def __init__(self, space=None, state=None):
        space = space or Box(0, 255, (2, 4, 5), np.uint8)
        super().__init__(Tuple((space, space)), Tuple((Discrete(2), Discrete(2))))
        if state is not None:
            self.state = lambda: state

    def see(self):
        inner = self.observation_space[0]
        picture = np.arange(40, dtype=np.uint8).reshape(2, 4, 5)
        if isinstance(inner, Dict):
            return ({"screen": picture, "action_mask": np.array([1, 0])},) * 2
        return picture, picture


MASKED = Dict({"screen": Box(0, 255, (2, 4, 5), np.uint8), "action_mask": Box(0, 1, (2,), np.int8)})


@pytest.mark.parametrize("space", [None, MASKED])
def test_pictures_of_bytes_are_rows_between_0_and_1(space):
    env = adopt("ours:Screens", Screens(space))
    assert (env.spec.image, env.spec.state_image) == ((4, 5, 2), (2, 4, 5, 2))
    obs, state, avail, _ = env.reset(0)
    wanted = np.moveaxis(np.arange(40).reshape(2, 4, 5), 0, -1).ravel() / 255
    np.testing.assert_allclose(obs, [wanted, wanted], rtol=1e-6)
    np.testing.assert_array_equal(state, obs.ravel())
    assert avail.tolist() == ([[True, space is None]] * 2 if space else [[True, True]] * 2)


def test_a_state_may_be_a_picture_of_its_own():
    state = np.full((6, 7, 3), 51, np.uint8)
    env = adopt("ours:Screens", Screens(state=state))
    assert env.spec.state_image == (6, 7, 3)
    np.testing.assert_allclose(env.reset(0).state, np.full(126, 0.2), rtol=1e-6)
    assert adopt("ours:Screens", Screens(state=np.zeros(3))).spec.state_image is None


def test_pictures_may_stay_rows_of_numbers():
    env = adopt("ours:Screens", Screens(), images=False)
    assert (env.spec.image, env.spec.state_image) == (None, None)
    np.testing.assert_array_equal(env.reset(0).obs[0], np.arange(40))


def test_agents_with_unequal_pictures_have_rows_of_numbers():
    env = Screens()
    other = Box(0, 255, (4, 5, 2), np.uint8)
    env.observation_space = Tuple((env.observation_space[0], other))
    env.see = lambda: (np.zeros((2, 4, 5), np.uint8), np.zeros((4, 5, 2), np.uint8))
    assert adopt("ours:Screens", env).spec.image is None


@pytest.mark.slow
def test_an_environment_of_pictures_is_trained_on():
    run = perla.train(
        Screens, "perla-mappo", steps=64, seeds=1, num_evaluations=1, eval_episodes=2,
        absolute_episodes=2, env_options={"reward": "common"}, quiet=True, num_envs=2,
        rollout_length=8, hidden_size=8,
    )  # fmt: skip
    assert run.table()["final_return"].item() == pytest.approx(12.0)
