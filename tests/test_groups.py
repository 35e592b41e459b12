"""Groups: agents of one kind share their parameters, agents of different kinds share nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probes
from marks import slow
from perla.algos.actor_critic import create_actor, create_critic
from perla.algos.create import create
from perla.algos.values import create_value
from perla.cli import main
from perla.cli.flags import explain
from perla.config import from_json, to_json
from perla.distributions import Categorical
from perla.envs.protocol import Observation, Spec
from perla.envs.wrappers import AutoReset
from perla.errors import UserError
from perla.flops import work
from perla.loops.anakin import Trainer
from perla.loops.rollout import begin, rollout
from perla.methods.recipes import make
from perla.methods.settings import configure
from perla.methods.values import Embedded, Multilinear, Network
from perla.runs import checkpoint
from perla.runs.spec import Run

GROUPS = (0, 1, 0)
TIME, BATCH, AGENTS, ACTIONS, SEEN = 3, 2, 3, 4, 5
SPEC = Spec("random", AGENTS, SEEN, 6, (ACTIONS,) * AGENTS, 10, "common")
FRESH = jnp.zeros((TIME, BATCH), bool).at[0].set(True)
SMALL = {"hidden_size": 8, "init": "torch"}


def observations(alike=False) -> Observation:
    obs = jax.random.normal(jax.random.key(0), (TIME, BATCH, AGENTS, SEEN))
    return Observation(
        jnp.broadcast_to(obs[..., :1, :], obs.shape) if alike else obs,
        jax.random.normal(jax.random.key(1), (TIME, BATCH, 6)),
        jnp.ones((TIME, BATCH, AGENTS, ACTIONS), bool),
    )


def of_group(body, group):
    """A body of all agents that has a group's net alone."""
    return replace(body, net=jax.tree.map(lambda x: x[group], body.net), parameter_groups=None)


def assert_close(ours, theirs, atol=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


# --- Whose parameters serve whom ----------------------------------------------------------------


@pytest.mark.parametrize("core", ["mlp", "gru"])
@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
def test_a_group_is_served_by_its_own_actor(core, continuous):
    spec = replace(SPEC, continuous=continuous)
    config = make("ippo", **SMALL, actor_network=core, parameter_groups=GROUPS, agent_ids=False)
    actor = create_actor(config, spec, jax.random.key(0))
    if continuous:
        actor = replace(actor, log_std=jnp.arange(2.0 * ACTIONS).reshape(2, -1) / 9)
    ours, hidden_states = actor.unroll(observations(), actor.initial_state((BATCH,)), FRESH)
    for group in (0, 1):
        sigma = actor.log_std
        of_one_group = replace(
            actor,
            body=of_group(actor.body, group),
            log_std=None if sigma is None else sigma[group][None],
        )
        theirs, their_states = of_one_group.unroll(
            observations(), actor.initial_state((BATCH,)), FRESH
        )
        own = [agent for agent in range(AGENTS) if GROUPS[agent] == group]
        take = partial(jnp.take, indices=jnp.array(own), axis=2)
        assert_close(
            *(jax.tree.map(take, x) for x in ((ours, hidden_states), (theirs, their_states)))
        )


CRITICS = {
    "first": Network(action_fusion="first"),
    "last": Network(action_fusion="last"),
    "multilinear": Multilinear(rank=3),
}


@pytest.mark.parametrize("core", ["mlp", "gru"])
@pytest.mark.parametrize("interaction", CRITICS.values(), ids=CRITICS.keys())
def test_a_group_is_served_by_its_own_critic(core, interaction):
    value = Embedded(critic_input="local", critic_model=interaction)
    config = make(
        "ippo", **SMALL, critic_network=core, parameter_groups=GROUPS, agent_ids=False, value=value
    )
    critic = create_critic(config, SPEC, jax.random.key(0))
    embedded = create_value(value, SPEC)
    policy = Categorical.masked(
        jax.random.normal(jax.random.key(2), (TIME, BATCH, AGENTS, ACTIONS)), observations().avail
    )
    action = policy.mode()

    @eqx.filter_jit
    def values(critic):
        context, _ = critic.context(observations(), critic.body.initial_state((BATCH,)), FRESH)
        averaged = embedded.estimate(critic, context, policy, jax.random.key(3)).value
        return critic.joint(context, action)[..., 0], averaged

    def of_one_group(group):
        if isinstance(interaction, Network):
            return replace(critic, body=of_group(critic.body, group))
        inner = replace(critic.inner, body=of_group(critic.body, group))
        return replace(critic, inner=inner, effects=critic.effects[group])

    each = [values(of_one_group(group)) for group in (0, 1)]
    for ours, *theirs in zip(values(critic), *each, strict=True):
        expected = jnp.stack([theirs[group][..., i] for i, group in enumerate(GROUPS)], -1)
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        assert np.abs(theirs[0] - theirs[1]).max() > 1e-2


@pytest.mark.parametrize("ids", [False, True], ids=["without ids", "with ids"])
def test_members_of_a_group_are_told_apart_by_their_ids_only(ids):
    config = make("ippo", **SMALL, parameter_groups=GROUPS, agent_ids=ids)
    actor = create_actor(config, SPEC, jax.random.key(0))
    policy, _ = actor.unroll(observations(alike=True), actor.initial_state((BATCH,)), FRESH)
    first, other, second = jnp.moveaxis(policy.log_probs, -2, 0)
    assert np.allclose(first, second, atol=1e-6) != ids
    assert np.abs(first - other).max() > 1e-3


def test_an_id_is_an_agents_place_in_its_group():
    body = create_actor(
        make("ippo", **SMALL, parameter_groups=GROUPS), SPEC, jax.random.key(0)
    ).body
    assert body.net.bottom.layers[0].weight.shape == (2, SEEN + 2, 8)
    rows = body.net.bottom.layers[0].weight[:, SEEN:]
    np.testing.assert_array_equal(body.id_rows, [rows[0, 0], rows[1, 0], rows[0, 1]])


@pytest.mark.parametrize("agent", range(AGENTS))
def test_what_an_agent_learns_moves_its_groups_parameters_alone(agent):
    actor = create_actor(make("ippo", **SMALL, parameter_groups=GROUPS), SPEC, jax.random.key(0))

    def loss(actor):
        policy, _ = actor.unroll(observations(), actor.initial_state((BATCH,)), FRESH)
        return policy.log_probs[:, :, agent, 0].sum()

    gradient = eqx.filter_grad(loss)(actor).body.net
    sizes = [
        max(float(jnp.abs(x[group]).max()) for x in jax.tree.leaves(gradient)) for group in (0, 1)
    ]
    assert sizes[GROUPS[agent]] > 1e-3
    assert sizes[1 - GROUPS[agent]] == 0


@pytest.mark.parametrize(
    ("sharing", "groups", "actor", "critic"),
    [
        ("shared", None, None, None),
        ("critic", None, (0, 1, 2), None),
        ("separate", None, (0, 1, 2), (0, 1, 2)),
        ("shared", GROUPS, GROUPS, GROUPS),
        ("critic", GROUPS, GROUPS, None),
    ],
)
def test_sharing_says_of_what_and_groups_among_whom(sharing, groups, actor, critic):
    config = make("ippo", **SMALL, parameter_sharing=sharing, parameter_groups=groups)
    learner = create(config, SPEC).init(jax.random.key(0))
    assert (learner.actor.body.parameter_groups, learner.critic.body.parameter_groups) == (
        actor,
        critic,
    )


# --- Reductions ---------------------------------------------------------------------------------

LEARNERS = {
    "perla-mappo": {"critic_network": "gru"},
    "ow-qmix": {"buffer_size": 64},
    "maddpg": {"buffer_size": 64, "updates_per_rollout": 1},
}


@pytest.mark.parametrize("algo", ["perla-mappo", "maddpg", *slow("ow-qmix")])
def test_a_group_for_each_agent_is_a_net_for_each(algo):
    """The same learner, whose program is therefore the same, from the same parameters."""
    own = make(algo, **SMALL, **LEARNERS[algo], parameter_groups=(0, 1, 2))
    separate = make(algo, **SMALL, **LEARNERS[algo], parameter_sharing="separate")
    ours, theirs = (
        jax.jit(create(config, SPEC).init)(jax.random.key(0)) for config in (own, separate)
    )
    assert eqx.tree_equal(ours, theirs)


@pytest.mark.parametrize("algo", ["perla-mappo", *slow("maddpg")])
def test_one_group_of_all_is_sharing(algo):
    """From the same parameters an update leads to the same ones, and measures the same."""
    world, small = probes.TOGETHER, SMALL | LEARNERS[algo] | {"num_envs": 4, "rollout_length": 4}
    shared, group = (
        create(make(algo, **small, parameter_groups=groups), world.spec)
        for groups in (None, (0, 0))
    )
    key = jax.random.key(0)
    learner = jax.jit(shared.init)(key)
    structure = jax.eval_shape(group.init, key)
    stacked = jax.tree.unflatten(
        jax.tree.structure(structure),
        [
            x.reshape(y.shape)
            for x, y in zip(jax.tree.leaves(learner), jax.tree.leaves(structure), strict=True)
        ],
    )
    copies = AutoReset(world, 4)

    @jax.jit
    def collect(actor):
        return rollout(copies, actor, begin(copies, actor, key), key, 4)[1]

    steps = collect(learner.actor)
    theirs, expected = jax.jit(shared.update)(learner, steps, key, jnp.zeros(()))
    ours, found = jax.jit(group.update)(stacked, steps, key, jnp.zeros(()))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.reshape(a, np.shape(b)), b, atol=1e-4)
    for name in set(expected) - {"average_flops"}:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-3, err_msg=name)


def test_groups_cost_what_a_net_for_each_costs():
    """Parameters are looked up once, and not for every joint action."""

    def average(groups, sharing):
        value = Embedded()
        config = make(
            "ippo", **SMALL, value=value, parameter_groups=groups, parameter_sharing=sharing
        )
        critic = create_critic(config, SPEC, jax.random.key(0)).gather_per_agent()
        policy = Categorical.masked(jnp.zeros((AGENTS, ACTIONS)), observations().avail[0, 0])
        return work(
            lambda x: create_value(value, SPEC).estimate(critic, x, policy, jax.random.key(0)),
            jnp.zeros((AGENTS, 8)),
        )

    assert average(GROUPS, "shared") == average(None, "separate")


# --- Learning, and going on ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_what_kinds_must_do_agents_that_are_one_cannot(seed):
    """All see the same, and there are no ids: whatever the parameters, they do the same."""
    world = probes.KINDS
    actor = create_actor(
        make("ippo", **SMALL, actor_network="mlp", agent_ids=False),
        world.spec,
        jax.random.key(seed),
    )
    actor = jax.tree.map(lambda x: 3 * x, actor)
    for signs in ((-1,) * 3, (1,) * 3):
        policy, _ = actor(
            world.see(world.moment(0, signs)), actor.initial_state(()), jnp.array(True)
        )
        best = policy.probs[jnp.arange(3), jnp.array(world.best(signs))]
        assert best.prod() <= 4 / 27 + 1e-5  # max p² (1 − p)


@pytest.mark.slow
def test_a_checkpoint_goes_on_as_if_never_interrupted(tmp_path):
    config = make("ippo", **SMALL, parameter_groups=GROUPS, num_envs=4, rollout_length=4)
    trainer = Trainer(probes.KINDS, config, seeds=(0,), steps=10**3, eval_episodes=2)
    once, _ = trainer.advance(trainer.init(), 64)
    half = trainer.export(trainer.advance(trainer.init(), 32)[0])
    path = checkpoint.path_of(tmp_path, 32)
    meta = checkpoint.Meta(
        run="r",
        evaluation=1,
        step=32,
        metrics_lines=0,
        metrics_digest="",
        wall_seconds=0.0,
        compile_seconds=0.0,
    )
    checkpoint.save(path, half, meta)
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), half)
    again, _ = trainer.advance(trainer.restore(checkpoint.load(path, template)[0]), 64)
    ours, theirs = (jax.tree.leaves(trainer.export(p).learner) for p in (once, again))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))


# --- As a setting -------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["perla-ippo", "qmix", "maddpg"])
def test_groups_are_written_as_a_list_of_numbers(algo):
    config = make(algo, parameter_groups=(0, 0, 1))
    assert configure(algo, "default", {"parameter_groups": "0,0,1"}) == config
    assert configure(algo, "default", {"parameter_groups": [0, 0, 1]}) == config
    assert configure(algo, "default", {"parameter_groups": "none"}) == make(algo)
    assert configure(algo, "default", {"parameter_groups": "0"}).parameter_groups == (0,)
    run = Run(env="a world of three", algo=algo, config=config, steps=100)
    assert json.loads(to_json(run))["config"]["parameter_groups"] == [0, 0, 1]
    assert from_json(to_json(run), Run, source="here") == run
    assert "--parameter-groups N,…|none" in explain(algo, "default")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--parameter-groups", "0,0,1"], "parameter_groups = 0,0,1: 3 agents, but lbf:.* has 2"),
        (["--parameter-groups", "0,2"], "parameter_groups = 0,2: group 1 is empty"),
        (["--parameter-groups", "1,1"], "parameter_groups = 1,1: group 0 is empty"),
        (["--parameter-groups", "0,a"], "--parameter-groups 0,a: expected a list"),
        (["--parameter-groups", "0,-1"], "--parameter-groups 0,-1: expected a list"),
        (["--parameter-groups", "0,"], "--parameter-groups 0,: expected a list"),
        (
            ["--parameter-groups", "0,0", "--parameter-sharing", "separate"],
            "parameter_groups = 0,0 with parameter_sharing = separate",
        ),
        (
            ["--parameter-groups", "0,0", "--order", "sequential"],
            "order = sequential with parameter_groups = 0,0",
        ),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(flags, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "ippo", "--env", "lbf:Foraging-5x5-2p-1f-v2", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(says, error)


@pytest.mark.parametrize("algo", ["ippo", "qmix", "maddpg"])
def test_every_agent_has_a_group(algo):
    with pytest.raises(UserError, match="2 agents, but random has 3"):
        create(make(algo, parameter_groups=(0, 1)), SPEC)
    with pytest.raises(UserError, match="parameter_groups = 0,1 with parameter_sharing = separate"):
        make(algo, parameter_groups=(0, 1), parameter_sharing="separate")
    with pytest.raises(UserError, match="parameter_groups"):
        make(algo, parameter_groups=())
