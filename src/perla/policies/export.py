"""Policies as files for other programs: JAX without perla, NumPy, ONNX.

Each file holds one function, the greedy step of all agents,

    action, hidden_state = step(obs, avail, hidden_state, is_first)

with `obs` float32 `[env, agent, feature]`, `avail` bool `[env, agent, action]`, `hidden_state`
float32 `[env, agent, width]`, zeros at first, and `is_first` bool `[env]`, true where an episode
begins. Where agents may die, `alive` bool `[env, agent]` follows.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.bridges.optional import import_optional
from perla.envs.protocol import Observation, Spec
from perla.errors import nearest
from perla.nets.actors import AnyActor
from perla.policies.architecture import describe_actor

Inputs = tuple[np.ndarray, ...]
Step = Callable[[Inputs], tuple[np.ndarray, np.ndarray]]
"""The exported function, run by the program that it is for."""

INPUTS = ("obs", "avail", "hidden_state", "is_first", "alive")
OUTPUTS = ("action", "hidden_state_after")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(actor: AnyActor, spec: Spec, format: str) -> bytes:
    """The file of `actor` in a `format`. Raises `UserError` for an unknown format, one that the
    actor cannot have, and a package that is missing."""
    if format not in FORMATS:
        raise nearest(format, FORMATS, what="format")
    return FORMATS[format][1](actor, spec)


def suffix(format: str) -> str:
    """The end of the names of a format's files."""
    return FORMATS[format][0]


def load(data: bytes, format: str) -> Step:
    """The function in a file, run as another program would."""
    return FORMATS[format][2](data)


def hidden_width(actor: AnyActor) -> int:
    """The width of an actor's hidden state."""
    return int(actor.initial_state((1,)).shape[-1])


# --- JAX ----------------------------------------------------------------------------------------


def _step(actor: AnyActor, spec: Spec) -> Callable[..., Any]:
    """The greedy step of one environment, vectorised over environments."""

    def step(obs, avail, hidden_state, is_first, alive=None):
        # No policy reads the global state.
        observation = Observation(obs, jnp.zeros(0), avail, alive)
        policy, after = actor(observation, hidden_state, is_first)
        action = policy.mode()
        after = actor.update_state(after, action)
        return (action if spec.continuous else action.astype(jnp.int32)), after

    return jax.vmap(step)


def _shapes(actor: AnyActor, spec: Spec, envs: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Shape and type of every input, for `envs` environments."""
    of_agents = (envs, spec.agents)
    shapes: list[tuple[tuple[Any, ...], Any]] = [
        ((*of_agents, spec.obs), jnp.float32),
        ((*of_agents, spec.max_actions), jnp.bool_),
        ((*of_agents, hidden_width(actor)), jnp.float32),
        ((envs,), jnp.bool_),
    ]
    return [*shapes, (of_agents, jnp.bool_)] if spec.mortal else shapes


def _to_jax(actor: AnyActor, spec: Spec) -> bytes:
    import_optional("flatbuffers", extra="export")
    from jax import export as jax_export

    (envs,) = jax_export.symbolic_shape("env")
    shapes = [jax.ShapeDtypeStruct(*each) for each in _shapes(actor, spec, envs)]
    exported = jax_export.export(jax.jit(_step(actor, spec)), platforms=PLATFORMS)(*shapes)
    return bytes(exported.serialize())


def _from_jax(data: bytes) -> Step:
    from jax import export as jax_export

    call = jax.jit(jax_export.deserialize(bytearray(data)).call)
    return lambda inputs: _pair(call(*map(jnp.asarray, inputs)))


# --- NumPy --------------------------------------------------------------------------------------


def _to_numpy(actor: AnyActor, spec: Spec) -> bytes:
    found = describe_actor(actor, spec)
    arrays: dict[str, Any] = {}
    operations = []
    for index, (name, values) in enumerate(found.operations):
        arrays |= {f"{index}.{key}": np.asarray(value) for key, value in values.items()}
        operations.append({"op": name} | {key: f"{index}.{key}" for key in values})
    architecture = {
        "id": spec.id, "agents": spec.agents, "obs": spec.obs, "actions": list(spec.actions),
        "mode": found.mode, "hidden": found.hidden, "last_action": found.last_action,
        "operations": operations,
    }  # fmt: skip
    buffer = io.BytesIO()
    np.savez(buffer, architecture=np.array(json.dumps(architecture)), **arrays)
    return buffer.getvalue()


def _from_numpy(data: bytes) -> Step:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    architecture = json.loads(str(arrays["architecture"]))
    return lambda inputs: numpy_step(architecture, arrays, *inputs)


def numpy_step(
    architecture: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    obs: np.ndarray,
    avail: np.ndarray,
    hidden_state: np.ndarray,
    is_first: np.ndarray,
    alive: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The exported step in NumPy, as `docs/policies.md` has it for readers without perla."""

    def times(x, weight):
        return (x[..., None, :] @ arrays[weight])[..., 0, :]

    if alive is not None:  # A dead agent takes the first available action.
        avail = avail & (alive[..., None] | (avail.cumsum(-1) == 1))
    hidden_state = np.where(is_first[:, None, None], np.float32(0), hidden_state)
    h, last = np.split(hidden_state, [architecture["hidden"]], axis=-1)
    x = np.concatenate([obs, last], axis=-1)
    for op in architecture["operations"]:
        if op["op"] == "norm":
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
            x = x * arrays[op["scale"]] + arrays[op["shift"]]
        elif op["op"] == "relu":
            x = np.maximum(x, 0)
        elif op["op"] == "dense":
            x = times(x, op["weight"]) + arrays[op["bias"]]
        elif op["op"] == "gru":
            r, z, n = np.split(times(x, op["weight"]) + arrays[op["bias"]], 3, axis=-1)
            r_h, z_h, n_h = np.split(times(h, op["recurrent"]), 3, axis=-1)
            r, z = 1 / (1 + np.exp(-r - r_h)), 1 / (1 + np.exp(-z - z_h))
            n = np.tanh(n + r * (n_h + arrays[op["candidate_bias"]]))
            x = h = n + z * (h - n)
    if architecture["mode"] == "argmax":
        action = np.where(avail, x, -np.inf).argmax(-1)
        last = np.eye(architecture["last_action"], dtype=np.float32)[action] if last.size else last
    else:
        action = np.where(avail, np.tanh(x) if architecture["mode"] == "tanh" else x, 0)
        last = action[..., : architecture["last_action"]]
    return action, np.concatenate([h, last], axis=-1)


# --- ONNX ---------------------------------------------------------------------------------------


def _to_onnx(actor: AnyActor, spec: Spec) -> bytes:
    jax2onnx: Any = import_optional("jax2onnx", extra="export")
    shapes = [jax.ShapeDtypeStruct(*each) for each in _shapes(actor, spec, "env")]
    with _quiet():
        model = jax2onnx.to_onnx(
            _step(actor, spec),
            shapes,
            model_name="perla",
            input_names=INPUTS[: len(shapes)],
            output_names=OUTPUTS,
        )
    return bytes(model.SerializeToString())


def _from_onnx(data: bytes) -> Step:
    runtime: Any = import_optional("onnxruntime", extra="export")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(data, options)
    names = [each.name for each in session.get_inputs()]
    by_name = dict(zip(INPUTS, range(len(INPUTS)), strict=True))
    return lambda inputs: _pair(session.run(None, {n: inputs[by_name[n]] for n in names}))


@contextlib.contextmanager
def _quiet():
    """Without the converter's warnings about shapes, which it infers later."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _pair(outputs: Any) -> tuple[np.ndarray, np.ndarray]:
    action, hidden_state = outputs
    return np.asarray(action), np.asarray(hidden_state)


FORMATS: dict[str, tuple[str, Callable[[AnyActor, Spec], bytes], Callable[[bytes], Step]]] = {
    "jax": (".jaxexport", _to_jax, _from_jax),
    "numpy": (".npz", _to_numpy, _from_numpy),
    "onnx": (".onnx", _to_onnx, _from_onnx),
}
"""The formats: the end of their files' names, the writer, and the reader."""
