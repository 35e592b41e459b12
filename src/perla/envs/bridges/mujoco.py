"""Multi-agent MuJoCo: robots of Gymnasium's MuJoCo tasks whose joints are divided among agents.

The environment is `mamujoco_v1` of gymnasium-robotics, number for number. The bridge scales actions
from [-1, 1] and pads agents to the largest. `tests/test_mujoco.py` compares with the original step
by step.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import io
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np

from perla.envs.bridges.optional import construction_error
from perla.envs.options import fit
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.errors import UserError, nearest
from perla.plugins import install_command

EXAMPLES = {
    "Hopper-3x1": "thigh, leg and foot",
    "Swimmer-2x1": "a joint each",
    "Walker2d-2x3": "right and left leg",
    "HalfCheetah-2x3": "back and front leg",
    "HalfCheetah-6x1": "a joint each",
    "Ant-2x4": "the legs of each side",
    "Ant-2x4d": "the legs of each diagonal",
    "Ant-4x2": "a leg each",
    "Humanoid-9|8": "upper and lower body",
    "HumanoidStandup-9|8": "upper and lower body",
    "Reacher-2x1": "a joint each",
    "Pusher-3p": "shoulder, elbow and wrist",
    "ManySegmentSwimmer-10x2": "two segments each",
    "ManySegmentAnt-2x3": "three segments each",
}
"""Names that are known to work, with a description of the agents."""
REQUIRES = install_command("mujoco")

SCENARIOS = sorted({name.partition("-")[0] for name in EXAMPLES} | {
    "CoupledHalfCheetah", "InvertedPendulum", "InvertedDoublePendulum",
})  # fmt: skip
"""Names of the robots; without a factorisation, a robot is a single agent."""


class MultiAgentMujoco:
    """A robot divided into agents, a [`HostEnv`][perla.envs.protocol.HostEnv].

    An agent observes its own joints, the joints up to `agent_obsk` joints away, and the global
    features. The global state is the observation of the single-agent task, and all agents receive
    the task's reward. Agents with fewer features or joints than others are padded with zeros, and
    `avail` masks the padded dimensions of actions. Actions are scaled from [-1, 1] to the task's
    bounds.
    """

    def __init__(self, scenario: str, factorisation: str | None, agent_obsk: int, options: Any):
        self.scenario, self.factorisation = scenario, factorisation
        self.agent_obsk, self.options = agent_obsk, dict(options)
        with _exclusive(scenario):
            self.env = _module().parallel_env(
                scenario=scenario,
                agent_conf=factorisation,
                agent_obsk=agent_obsk,
                render_mode="rgb_array",
                **_arguments(scenario, self.options),
            )
        env = self.env
        # The library sorts joints by label. Some joints of Pusher share a label and would be in the
        # order of a set, which differs between processes.
        for lists in getattr(env, "k_dicts", ()):
            for nodes in lists.values():
                nodes.sort(key=lambda node: (node.label, node.act_ids))
        self.agents: list[str] = list(env.possible_agents)
        boxes = [env.action_space(agent) for agent in self.agents]
        # Centre and half the width of the task's bounds: a in [-1, 1] becomes centre + a · half.
        self.bounds = [((box.high + box.low) / 2, (box.high - box.low) / 2) for box in boxes]
        sizes = tuple(box.shape[0] for box in boxes)
        self.avail = np.arange(max(sizes)) < np.array(sizes)[:, None]
        self.spec = Spec(
            id=f"mamujoco:{scenario}" + (f"-{factorisation}" if factorisation else ""),
            agents=len(self.agents),
            obs=max(env.observation_space(agent).shape[0] for agent in self.agents),
            state=env.single_agent_env.observation_space.shape[0],
            actions=sizes,
            limit=int(env.single_agent_env.get_wrapper_attr("_max_episode_steps")),
            early_truncation=False,
            reward="common",
            continuous=True,
            rules={
                "scenario": scenario,
                "factorisation": factorisation,
                "agent_obsk": agent_obsk,
                **self.options,
                **{name: importlib.metadata.version(name) for name in PACKAGES},
            },
        )

    def reset(self, seed: int) -> Observation:
        """Begin an episode."""
        observations, _ = self.env.reset(seed=seed)
        return self._observation(observations)

    def step(self, action: np.ndarray) -> TimeStep:
        """One step of the task; `action`: `[agent, dimension]` in [-1, 1]."""
        actions = {
            agent: centre + action[i, : len(half)] * half
            for i, (agent, (centre, half)) in enumerate(zip(self.agents, self.bounds, strict=True))
        }
        observations, rewards, terminations, truncations, _ = self.env.step(actions)
        observation = self._observation(observations)
        first = self.agents[0]  # All agents have the same flags.
        return TimeStep(
            observation,
            np.array([rewards[agent] for agent in self.agents], np.float32),
            np.bool_(terminations[first]),
            np.bool_(truncations[first] and not terminations[first]),
            observation,
        )

    def render(self) -> np.ndarray:
        """The image of the task's own camera, without a display. Raises `UserError` if MuJoCo
        cannot draw here."""
        if not (os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY")):
            os.environ["MUJOCO_GL"] = "egl"
        try:
            return np.asarray(self.env.render(), np.uint8)
        except Exception as error:  # Backends raise anything.
            text = " ".join(str(error).split())
            backend = os.environ.get("MUJOCO_GL", "glfw")
            raise UserError(
                f"{self.spec.id}: MuJoCo cannot draw here with MUJOCO_GL={backend} ({text}); "
                "install EGL or OSMesa (libegl1, libosmesa6) and set MUJOCO_GL to egl or osmesa"
            ) from None

    def close(self) -> None:
        """Close the task."""
        self.env.close()

    def _observation(self, observations: dict[str, np.ndarray]) -> Observation:
        obs = np.zeros((len(self.agents), self.spec.obs), np.float32)
        for i, agent in enumerate(self.agents):
            obs[i, : len(observations[agent])] = observations[agent]
        return Observation(obs, np.asarray(self.env.state(), np.float32), self.avail)


PACKAGES = ("gymnasium-robotics", "gymnasium", "mujoco")
"""Packages that affect results; their versions are written into every result."""

RESERVED_OPTIONS = ("scenario", "agent_conf", "render_mode")
"""Arguments of `mamujoco_v1` that the bridge sets."""


def make_env(name: str, /, **options: Any) -> MultiAgentMujoco:
    """The environment of a robot and a factorisation, such as `Hopper-3x1`.

    Options: `agent_obsk`, the distance in joints up to which an agent observes others (1); all
    others are the Gymnasium task's own, such as `forward_reward_weight`. Raises `UserError` for an
    unknown name or option, or if gymnasium-robotics is not installed.
    """
    scenario, _, factorisation = name.partition("-")
    if scenario not in SCENARIOS:
        raise nearest(scenario, SCENARIOS, what="MuJoCo robot")
    for option in RESERVED_OPTIONS:
        if option in options:
            raise UserError(f"mamujoco:{name}: {option} is no option; the bridge sets it")
    agent_obsk = options.pop("agent_obsk", 1)
    if isinstance(agent_obsk, bool) or not isinstance(agent_obsk, int) or agent_obsk < 0:
        raise UserError(f"agent_obsk {agent_obsk!r} is not a whole number of 0 or more")
    try:
        return MultiAgentMujoco(scenario, factorisation or None, agent_obsk, options)
    except UserError:
        raise
    except TypeError as error:
        match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if match is None:
            raise construction_error(f"mamujoco:{name}", options, error) from None
        option = match[1]
        raise UserError(
            f"unknown option {option!r} of mamujoco:{name}; known are agent_obsk and those of "
            f"Gymnasium's {scenario}"
        ) from None
    except Exception as error:  # The library raises plain exceptions for unknown factorisations.
        if "UNKNOWN" not in str(error):
            versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
            raise UserError(
                f"mamujoco:{name} cannot be made by {versions} ({type(error).__name__}: {error})"
            ) from None
        known = [example for example in EXAMPLES if example.startswith(f"{scenario}-")]
        hint = f"known: {', '.join(known)}" if known else f"{scenario} cannot be divided"
        raise UserError(f"unknown factorisation {factorisation!r} of {scenario}; {hint}") from None


def _module() -> Any:
    try:
        # Importing it prints warnings about other environments.
        with redirect_stderr(io.StringIO()):
            from gymnasium_robotics import mamujoco_v1
    except ImportError as error:
        raise UserError(
            f"mamujoco environments need gymnasium-robotics and mujoco ({error}); {REQUIRES}"
        ) from None
    return mamujoco_v1


def _arguments(scenario: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` as arguments of the library's function and of Gymnasium's task."""
    from gymnasium.envs import registration

    arguments = fit(f"mamujoco:{scenario}", _module().parallel_env, options)
    task = registration.registry.get(f"{scenario}-v5")
    if task is None or not isinstance(task.entry_point, str):
        return arguments
    maker = registration.load_env_creator(task.entry_point)
    return fit(f"mamujoco:{scenario}", maker, arguments)


@contextmanager
def _exclusive(scenario: str) -> Iterator[None]:
    """Lock out other processes while the library writes, reads and removes the description file of
    a robot, which has the same path in all processes."""
    if not scenario.startswith("ManySegment"):
        yield
        return
    path = Path(tempfile.gettempdir()) / f"perla-mujoco-{os.getuid()}.lock"
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
