"""Networks: their outputs, hidden states and parameter sharing."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perla.envs.protocol import Observation
from perla.nets.actors import Actor
from perla.nets.body import Body
from perla.nets.critics import Critic
from perla.nets.layers import GRU, MLP, LayerNorm, Linear, initial_weight

TIME, BATCH, AGENTS, ACTIONS, SEEN, HIDDEN = 6, 3, 2, 4, 5, 8

DEFAULT = {
    "agents": AGENTS, "features": SEEN, "outputs": ACTIONS, "core": "mlp", "hidden_size": HIDDEN,
    "num_layers": 2, "gain": 1.0, "init": "orthogonal", "norm": False, "ids": True,
    "parameter_groups": None,
}  # fmt: skip


@partial(jax.jit, static_argnames=("settings",))
def _body(key, settings):
    return Body.create(key, **dict(settings))


def body(key=0, **settings) -> Body:
    """A network with nonzero biases, so that a missing bias changes the outputs."""
    made = _body(jax.random.key(key), tuple((DEFAULT | settings).items()))
    rng = np.random.default_rng(key)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape) * 0.1, x.dtype), made)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def observations(seed=0, time=TIME, batch=BATCH):
    avail = np.random.default_rng(seed).random((time, batch, AGENTS, ACTIONS)) < 0.7
    avail[..., 0] = True
    return Observation(
        normal(seed, time, batch, AGENTS, SEEN),
        normal(seed + 1, time, batch, 3),
        jnp.asarray(avail),
    )


FRESH = jnp.asarray(np.random.default_rng(5).random((TIME, BATCH)) < 0.3).at[0].set(True)

# --- Layers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(5, 9), (9, 5), (6, 6)])
def test_orthogonal_weights_are_orthogonal_and_scaled(rows, columns):
    weight = np.asarray(initial_weight(jax.random.key(0), rows, columns, "orthogonal", 1.5))
    gram = weight @ weight.T if rows <= columns else weight.T @ weight
    np.testing.assert_allclose(gram, 1.5**2 * np.eye(min(rows, columns)), atol=1e-5)


def test_orthogonal_weights_are_drawn_one_by_one():
    """A batched factorisation deadlocks on machines with few cores."""
    keys = jax.random.split(jax.random.key(0), 3)

    def draw(key):
        return initial_weight(key, 6, 4, "orthogonal", 1.0)

    many = jax.jit(jax.vmap(draw))
    text = many.trace(keys).lower(lowering_platforms=("cpu",)).as_text()
    factorised = re.findall(r"@lapack_sgeqrf_ffi\(.*: \(tensor<([^>]*)>", text)
    assert factorised
    assert set(factorised) == {"6x4xf32"}
    np.testing.assert_array_equal(many(keys), jnp.stack([jax.jit(draw)(key) for key in keys]))


def test_torch_weights_fill_their_interval_whatever_the_gain():
    linear = Linear.create(jax.random.key(0), 16, 500, "torch", gain=9.0)
    for parameter in (linear.weight, linear.bias):
        assert np.abs(parameter).max() <= 0.25
        assert np.abs(parameter).max() > 0.24
        assert np.var(np.asarray(parameter)) == pytest.approx(0.25**2 / 3, rel=0.15)


def test_orthogonal_layers_begin_without_bias():
    assert (Linear.create(jax.random.key(0), 3, 4, "orthogonal").bias == 0).all()


def test_each_gate_of_a_gru_is_orthogonal_on_its_own():
    recurrent = GRU.create(jax.random.key(0), SEEN, HIDDEN, "orthogonal").recurrent
    for gate in jnp.split(recurrent, 3, axis=-1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(HIDDEN), atol=1e-5)


def test_layer_norm_has_zero_mean_and_unit_variance_then_scale_and_shift():
    x = 3 + 5 * normal(0, 7, HIDDEN)
    y = LayerNorm.create(HIDDEN)(x)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(-1), 1, atol=1e-3)
    scale, shift = normal(1, HIDDEN), normal(2, HIDDEN)
    np.testing.assert_allclose(LayerNorm(scale, shift)(x), y * scale[None] + shift[None], rtol=1e-5)


@pytest.mark.parametrize("norm_inputs", [True, False])
def test_inputs_are_normalised_with_the_hidden_layers_or_left_as_they_are(norm_inputs):
    """Normalised inputs lose their mean; a normalised hidden layer loses its scale."""
    mlp = MLP.create(
        jax.random.key(0), SEEN, 0, (HIDDEN, HIDDEN), 2, init="torch", gain=1.0, norm=True,
        norm_inputs=norm_inputs,
    )  # fmt: skip
    first = jax.tree.map(lambda x: 10 * x, mlp.layers[0])
    scaled = replace(mlp, layers=(first, *mlp.layers[1:]))
    x = normal(0, 10, SEEN)
    np.testing.assert_allclose(scaled(x), mlp(x), atol=1e-2)
    assert np.allclose(mlp(x + 3), mlp(x), atol=1e-2) == norm_inputs


def test_extra_inputs_are_concatenated_to_the_features():
    mlp = MLP.create(
        jax.random.key(0), SEEN, 3, (HIDDEN, HIDDEN), 2, init="torch", gain=1.0, norm=False
    )
    x, other = normal(0, 10, SEEN), normal(1, 10, 3)
    y = np.concatenate([x, other], -1)
    for i, layer in enumerate(mlp.layers):
        y = (np.maximum(y, 0) if i else y) @ np.asarray(layer.weight) + np.asarray(layer.bias)
    np.testing.assert_allclose(mlp.finish(mlp.begin(x) + other @ mlp.extra_rows), y, atol=1e-5)


# --- The recurrent layer ------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_gru(gru: GRU, x, hidden_state, is_first):
    """PyTorch's GRU, one step and one gate at a time."""
    weight, bias = np.asarray(gru.inputs.weight), np.asarray(gru.inputs.bias)
    (w_r, w_z, w_n), (b_r, b_z, b_n) = np.split(weight, 3, -1), np.split(bias, 3)
    u_r, u_z, u_n = np.split(np.asarray(gru.recurrent), 3, -1)
    hidden_states = []
    for x_t, fresh_t in zip(np.asarray(x), np.asarray(is_first), strict=True):
        h = np.where(fresh_t[:, None], 0.0, hidden_state)
        r = sigmoid(x_t @ w_r + b_r + h @ u_r)
        z = sigmoid(x_t @ w_z + b_z + h @ u_z)
        n = np.tanh(x_t @ w_n + b_n + r * (h @ u_n + np.asarray(gru.candidate_bias)))
        hidden_state = (1 - z) * n + z * h
        hidden_states.append(hidden_state)
    return np.stack(hidden_states)


def plain_gru(gru: GRU, x, hidden_state, is_first):
    """The same as a function that JAX differentiates."""
    hidden_states = []
    for t in range(len(x)):
        h = jnp.where(is_first[t][:, None], 0.0, hidden_state)
        gates = x[t] @ gru.inputs.weight + gru.inputs.bias[None]
        r_x, z_x, n_x = jnp.split(gates, 3, -1)
        r_h, z_h, n_h = jnp.split(h @ gru.recurrent, 3, -1)
        r, z = jax.nn.sigmoid(r_x + r_h), jax.nn.sigmoid(z_x + z_h)
        n = jnp.tanh(n_x + r * (n_h + gru.candidate_bias[None]))
        hidden_state = (1 - z) * n + z * h
        hidden_states.append(hidden_state)
    return jnp.stack(hidden_states)


@pytest.fixture(scope="module")
def gru():
    made = jax.jit(lambda key: GRU.create(key, SEEN, HIDDEN, "torch"))(jax.random.key(0))
    return made, normal(1, TIME, BATCH, SEEN), normal(2, BATCH, HIDDEN), FRESH.at[0, 0].set(False)


def test_the_gru_is_pytorchs(gru):
    net, *inputs = gru
    np.testing.assert_allclose(jax.jit(net.__call__)(*inputs), numpy_gru(*gru), atol=1e-5)


def test_the_gradient_written_by_hand_is_that_of_autodiff(gru):
    net, x, hidden_state, is_first = gru
    weights = normal(3, TIME, BATCH, HIDDEN)

    def gradients(unroll):
        def loss(net, x, hidden_state):
            return (weights * unroll(net, x, hidden_state, is_first)).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(net, x, hidden_state)

    ours, autodiff = gradients(lambda net, *rest: net(*rest)), gradients(plain_gru)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(autodiff), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_no_gradient_passes_the_beginning_of_an_episode(gru):
    net, x, hidden_state, _ = gru
    is_first = jnp.zeros((TIME, BATCH), bool).at[3].set(True)

    def late(x, hidden_state):
        return net(x, hidden_state, is_first)[3:].sum()

    to_x, to_hidden_state = jax.jit(jax.grad(late, argnums=(0, 1)))(x, hidden_state)
    assert (to_x[:3] == 0).all()
    assert (to_hidden_state == 0).all()
    assert (to_x[3:] != 0).any()


# --- Bodies, actors, critics --------------------------------------------------------------------


@eqx.filter_jit
def unroll(actor, observation, hidden_state, is_first):
    return actor.unroll(observation, hidden_state, is_first)


def policies(net: Body, observation, is_first=FRESH):
    actor = Actor(net)
    return unroll(actor, observation, actor.body.initial_state(is_first.shape[1:]), is_first)[
        0
    ].log_probs


KINDS = {
    "mlp": {},
    "gru": {"core": "gru"},
    "gru, separate": {"core": "gru", "parameter_groups": (0, 1)},
    "mlp, normalised": {"norm": True},
    "gru, normalised": {"core": "gru", "norm": True},
}
kinds = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())


@kinds
def test_single_steps_equal_unrolling(settings):
    actor, observation = Actor(body(**settings)), observations()
    policy, hidden_states = unroll(actor, observation, actor.body.initial_state((BATCH,)), FRESH)
    hidden_state = actor.body.initial_state((BATCH,))
    act = eqx.filter_jit(lambda actor, *now: actor(*now))
    for t in range(TIME):
        now = jax.tree.map(lambda x, t=t: x[t], observation)
        one, hidden_state = act(actor, now, hidden_state, FRESH[t])
        np.testing.assert_allclose(one.log_probs, policy.log_probs[t], atol=1e-5)
        np.testing.assert_allclose(hidden_state, hidden_states[t], atol=1e-5)


@kinds
def test_hidden_states_do_not_pass_from_one_episode_to_the_next(settings):
    """Two episodes in one column, swapped, are swapped in the output."""
    is_first = jnp.zeros((TIME, BATCH), bool).at[jnp.array([0, 3])].set(True)
    swap = jnp.array([3, 4, 5, 0, 1, 2])
    net, observation = body(**settings), observations()
    swapped = jax.tree.map(lambda x: x[swap], observation)
    expected = policies(net, observation, is_first)[swap]
    np.testing.assert_allclose(policies(net, swapped, is_first), expected, atol=1e-5)


def test_a_recurrent_policy_remembers_within_its_episode():
    net, observation = body(core="gru"), observations()
    is_first = jnp.zeros((TIME, BATCH), bool).at[0].set(True)
    changed = observation._replace(obs=observation.obs.at[0].add(1.0))
    difference = jnp.abs(policies(net, observation, is_first) - policies(net, changed, is_first))
    assert (difference[-1].max(-1) > 1e-4).all()


@pytest.mark.parametrize("core", ["mlp", "gru"])
def test_separate_parameters_affect_one_agent_each(core):
    net, observation = body(core=core, parameter_groups=(0, 1), ids=False), observations()
    rows = jnp.arange(AGENTS) == 0
    changed = jax.tree.map(
        lambda x: x + jnp.where(rows.reshape(-1, *[1] * (x.ndim - 1)), 0.1, 0.0), net
    )
    before, after = policies(net, observation), policies(changed, observation)
    np.testing.assert_allclose(after[..., 1, :], before[..., 1, :], atol=1e-6)
    assert np.abs(after - before)[..., 0, :].max() > 1e-2


@pytest.mark.parametrize("core", ["mlp", "gru"])
@pytest.mark.parametrize("ids", [True, False])
def test_shared_parameters_distinguish_agents_by_ids_only(core, ids):
    observation = observations()
    same = Observation(
        jnp.broadcast_to(observation.obs[..., :1, :], observation.obs.shape),
        observation.state,
        jnp.ones_like(observation.avail),
    )
    log_probs = policies(body(core=core, ids=ids), same)
    alike = np.allclose(log_probs[..., 0, :], log_probs[..., 1, :], atol=1e-6)
    assert alike == (not ids)


@pytest.mark.parametrize("fusion", ["first", "last"])
@pytest.mark.parametrize("groups", [None, (0, 1)], ids=["shared", "separate"])
@pytest.mark.parametrize("critic_input", ["local", "global"])
def test_a_critics_inputs_are_its_view_the_agents_id_and_the_other_agents_actions(
    critic_input, groups, fusion
):
    """Against a dense network whose first layer has inputs [view, one-hot id], and whose first or
    last hidden layer also has inputs [one-hot actions, zeros for its own]; agents with separate
    parameters have no id."""
    net = body(
        features=SEEN if critic_input == "local" else 3, num_layers=3, outputs=1,
        extra_inputs=AGENTS * ACTIONS, action_fusion=fusion, parameter_groups=groups,
    )  # fmt: skip
    critic = Critic(net, critic_input, ACTIONS)
    observation = observations(time=1)
    joint = np.random.default_rng(0).integers(ACTIONS, size=(BATCH, AGENTS))
    context, _ = critic.context(
        observation, net.initial_state((BATCH,)), jnp.ones((1, BATCH), bool)
    )
    values = critic.joint(context[0], jnp.asarray(joint, jnp.int32))
    layers = (net.net.torso.dense.layers if net.net.torso else ()) + net.net.head.layers
    fusion_layer = 0 if fusion == "first" else len(layers) - 2

    for copy, agent in np.ndindex(BATCH, AGENTS):
        view = (
            observation.obs[0, copy, agent]
            if critic_input == "local"
            else observation.state[0, copy]
        )
        actions = np.zeros((AGENTS, ACTIONS))
        for m in range(AGENTS):
            actions[m, joint[copy, m]] = m != agent
        y = np.concatenate([view, [] if groups else np.eye(AGENTS)[agent]])
        for i, layer in enumerate(layers):
            own = agent if groups else ...
            weight, bias = np.asarray(layer.weight)[own], np.asarray(layer.bias)[own]
            y = np.maximum(y, 0) if i else y
            y = (np.concatenate([y, actions.ravel()]) if i == fusion_layer else y) @ weight + bias
        np.testing.assert_allclose(values[copy, agent], y, atol=1e-4)


@pytest.mark.parametrize("core", ["mlp", "gru"])
def test_with_one_hidden_layer_first_and_last_fusion_are_equal(core):
    """Above a GRU there is only one hidden layer."""
    first, last = (
        body(core=core, num_layers=1, extra_inputs=AGENTS * ACTIONS, action_fusion=fusion)
        for fusion in ("first", "last")
    )
    assert jax.tree.structure(first) == jax.tree.structure(last)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(last), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("init", ["orthogonal", "torch"])
@pytest.mark.parametrize("fusion", ["first", "last"])
def test_initial_action_weights_have_the_size_of_all_weights_of_their_layer(fusion, init):
    settings = {
        "extra_inputs": AGENTS * ACTIONS,
        "action_fusion": fusion,
        "init": init,
        "hidden_size": 64,
    }
    net = _body(jax.random.key(0), tuple((DEFAULT | settings).items()))
    sizes = np.linalg.norm(np.asarray(net.net.head.layers[0].weight), axis=1)
    inputs, actions = np.split(sizes, [-AGENTS * ACTIONS])
    assert len(inputs) == {"first": SEEN + AGENTS, "last": 64}[fusion]
    assert actions.mean() == pytest.approx(inputs.mean(), rel=0.1)


@pytest.mark.parametrize(
    "settings", [{}, {"action_fusion": "first"}, {"core": "gru"}, {"norm": True}]
)
def test_a_joint_action_without_batch_axes_equals_one_for_each_state(settings):
    net = body(outputs=1, extra_inputs=AGENTS * ACTIONS, **settings)
    critic = Critic(net, "local", ACTIONS)
    context, _ = critic.context(observations(), net.initial_state((BATCH,)), FRESH)
    joint = jnp.asarray([2, 1], jnp.int32)
    each = jnp.broadcast_to(joint, (TIME, BATCH, AGENTS))
    np.testing.assert_allclose(critic.joint(context, joint), critic.joint(context, each), atol=1e-5)


@pytest.mark.parametrize("core", ["mlp", "gru"])
def test_the_fusion_layer_has_layer_norm(core):
    net = body(outputs=1, extra_inputs=AGENTS * ACTIONS, norm=True, core=core)
    plain = LayerNorm.create(HIDDEN)
    net = eqx.tree_at(lambda body: body.net.head.norms[-1], net, plain)
    critic = Critic(net, "local", ACTIONS)
    context, _ = critic.context(observations(), net.initial_state((BATCH,)), FRESH)
    hidden = critic.last_hidden(context, jnp.asarray([2, 1], jnp.int32))
    np.testing.assert_allclose(hidden.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(hidden.std(-1), 1, atol=1e-2)


def test_a_critics_hidden_state_is_independent_of_the_actions():
    net = body(outputs=1, extra_inputs=AGENTS * ACTIONS, core="gru")
    critic = Critic(net, "local", ACTIONS)
    blind = replace(
        critic,
        body=eqx.tree_at(
            lambda b: b.net.head.layers[0].weight,
            net,
            net.net.head.layers[0].weight.at[-AGENTS * ACTIONS :].set(0.0),
        ),
    )
    inputs = (observations(), net.initial_state((BATCH,)), FRESH)
    np.testing.assert_array_equal(critic.context(*inputs)[1], blind.context(*inputs)[1])
