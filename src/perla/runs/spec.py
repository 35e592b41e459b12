"""A run as data: environment, method, settings, seeds, steps and evaluations."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from perla.config import Config, Count, convert, encode
from perla.envs import options
from perla.envs.protocol import Env, HostEnv
from perla.errors import UserError
from perla.methods.method import Method

Steps = Annotated[int, Meta(ge=1, le=2 * 10**9)]
Seed = Annotated[int, Meta(ge=0, le=2**31 - 1)]
OnNonFinite = Literal["stop", "drop-seed"]
"""When a number of a seed is not finite: stop the run, or continue with the other seeds."""


class WarmStart(Config, tag="warm-start", frozen=True, kw_only=True):
    """The parameters with which a run begins: those of another run."""

    checkpoint: str
    """SHA-256 of the other run's checkpoint."""
    part: Literal["all", "actor"]
    """All of the learner but its replay buffer, or the policies alone."""


class Run(Config, frozen=True, kw_only=True):
    """Everything that determines a run's numbers. `config.json` holds it in full."""

    env: str
    """The environment's id."""
    env_options: dict[str, Any] = msgspec.field(default_factory=dict)
    """Options of the environment, as JSON has them: tuples become lists."""
    algo: str
    """The method's name. Its settings are in `config`."""
    preset: str = "default"
    """The preset's name. Its settings are in `config`."""
    config: Method
    """All settings of the learner."""

    steps: Steps
    """Environment steps of each seed, summed over environments; the last update may exceed it."""
    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1, max_length=1024)] = (0,)
    """Seeds of the independent repetitions."""
    data_parallel: Count = 1
    """Devices over which the environments of a seed are divided, for environments in JAX; on a CPU
    a device is a core."""
    num_evaluations: Count | None = None
    """Evaluations spread evenly over the run, in addition to the one before training; none: as
    many as `plan_evaluations` finds fit."""
    eval_episodes: Count | None = None
    """Episodes of an evaluation; none: as many as fit."""
    absolute_episodes: Count | None = None
    """Episodes of the absolute metric: the best parameters, evaluated once more at the end; none:
    as many as fit."""

    extended_from: tuple[Steps, ...] = ()
    """The numbers of steps that the run had before it was extended, in order."""
    warm_start: WarmStart | None = None
    """The parameters of another run with which it begins; none: random ones."""

    def __post_init__(self) -> None:
        plain = {name: options.plain(name, value) for name, value in self.env_options.items()}
        msgspec.structs.force_setattr(self, "env_options", plain)
        super().__post_init__()
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds = {self.seeds}: a seed occurs more than once")
        totals = (*self.extended_from, self.steps)
        if any(after <= before for before, after in itertools.pairwise(totals)):
            raise UserError(f"steps = {self.steps}: not more than before, {self.extended_from}")

    @property
    def identity(self) -> str:
        """A digest that is equal for two runs if and only if the runs are."""
        plain = msgspec.to_builtins(self)
        younger = {"extended_from": (), "warm_start": None, "data_parallel": 1}
        for name, default in younger.items():
            if getattr(self, name) == default:
                del plain[name]
        return hashlib.sha256(encode(plain)).hexdigest()

    def extended(self, steps: int) -> Run:
        """The run with more `steps`. Raises `UserError` if they are not more."""
        if steps <= self.steps:
            raise UserError(f"steps = {steps}: the run has {self.steps} already; name more")
        return self.replace(steps=steps, extended_from=(*self.extended_from, self.steps))

    def stages(self) -> list[Run]:
        """The run before each extension, and as it is."""
        totals = (*self.extended_from, self.steps)
        return [
            self.replace(steps=total, extended_from=totals[:index])
            for index, total in enumerate(totals)
        ]


def read_seeds(value: Any, *, name: str = "seeds") -> tuple[int, ...]:
    """The seeds that `value`, text or not, stands for: `5` is 0 to 4, and `3,7` or a list is these.

    Raises `UserError` unless they are 1 to 1024 different seeds.
    """
    if isinstance(value, str) and "," in value:
        value = tuple(word for word in value.split(",") if word)
    if isinstance(value, str) or not isinstance(value, Iterable):
        count = convert(value, int, name=name)
        if not 1 <= count <= 1024:
            raise UserError(f"{name} {value}: expected 1 to 1024 seeds, or a list such as 3,7")
        return tuple(range(count))
    value = tuple(value)
    seeds = tuple(convert(one, Seed, name=name) for one in value)
    if not seeds or len(set(seeds)) < len(seeds):
        text = ",".join(map(str, value))
        raise UserError(f"{name} {text}: expected a list of different seeds")
    return seeds


def steps_per_update(run: Run, env: Env | HostEnv) -> int:
    """The largest number of environment steps of an update, summed over environments."""
    return run.config.num_envs * run.config.length(env.spec.limit)


def schedule(steps: int, evaluations: int, per_update: int) -> tuple[int, ...]:
    """0 = t₀ < t₁ < … = `steps`: the steps at which every seed is evaluated, evenly spaced.

    They are at least `per_update` steps apart, so that every evaluation follows an update; if there
    is no room for `evaluations` intervals, there are fewer.
    """
    intervals = max(1, min(evaluations, steps // per_update))
    return tuple(i * steps // intervals for i in range(intervals + 1))


class Evaluations(NamedTuple):
    """The evaluations of a run. Each has greedy episodes and as many sampled ones."""

    schedule: tuple[int, ...]
    """The steps of the evaluations, from 0 on."""
    episodes: int
    """Greedy episodes of each."""
    absolute: int
    """Greedy episodes of the absolute metric."""

    @property
    def total(self) -> int:
        """The number of all episodes."""
        return 2 * (len(self.schedule) * self.episodes + self.absolute)

    def as_dict(self) -> dict[str, int]:
        """The numbers by the names that `Run` gives them."""
        return {
            "num_evaluations": len(self.schedule) - 1,
            "eval_episodes": self.episodes,
            "absolute_episodes": self.absolute,
        }


PROTOCOL = {"num_evaluations": 50, "eval_episodes": 32, "absolute_episodes": 320}
"""The evaluations of a run that is long enough (after Gorsane et al., 2022)."""
LEAST: tuple[dict[str, int], ...] = (
    {"num_evaluations": 10, "absolute_episodes": 32},
    {"eval_episodes": 4, "absolute_episodes": 8},
)
"""The numbers that become fewer in a shorter run, first the first two, and how few they become."""
EVALUATION_SHARE = 0.2
"""The share of a run's steps that its evaluations have at most, unless it sets their numbers or
they would be fewer than the least."""


def plan_evaluations(run: Run, env: Env | HostEnv) -> Evaluations:
    """The evaluations of `run`, with every number that it leaves open chosen.

    A run that was extended keeps the evaluations that it had; those of the further steps are as far
    apart.
    """
    first, *extended = run.stages()
    plan = _plan(first, env)
    apart = max(first.steps // (len(plan.schedule) - 1), steps_per_update(run, env))
    at = plan.schedule
    for before, stage in itertools.pairwise([first, *extended]):
        further = stage.steps - before.steps
        at += tuple(
            t + before.steps for t in schedule(further, max(1, further // apart), apart)[1:]
        )
    return plan._replace(schedule=at)


def _plan(run: Run, env: Env | HostEnv) -> Evaluations:
    """The evaluations of a run that was not extended.

    Those of the protocol, if their episodes take at most `EVALUATION_SHARE` of the run's steps when
    each is as long as the environment allows. Else evaluations and episodes of the absolute metric
    become fewer, and then the episodes of each evaluation.
    """
    limit, per_update = env.spec.limit or 1, steps_per_update(run, env)
    numbers = {name: getattr(run, name) or wanted for name, wanted in PROTOCOL.items()}
    numbers["num_evaluations"] = (
        len(schedule(run.steps, numbers["num_evaluations"], per_update)) - 1
    )

    def plan() -> Evaluations:
        at = schedule(run.steps, numbers["num_evaluations"], per_update)
        return Evaluations(at, numbers["eval_episodes"], numbers["absolute_episodes"])

    for least in LEAST:
        factor = EVALUATION_SHARE * run.steps / (limit * plan().total)
        for name, lowest in least.items():
            if getattr(run, name) is None and factor < 1:
                numbers[name] = max(int(numbers[name] * factor), min(lowest, numbers[name]))
                if name == "eval_episodes":  # A power of two, for few programs to be compiled.
                    numbers[name] = 1 << (numbers[name].bit_length() - 1)
    return plan()


def describe_evaluations(run: Run, env: Env | HostEnv) -> str:
    """The evaluations of `run` and their share of its steps, as a line for the user."""
    plan = plan_evaluations(run, env)
    share = plan.total * (env.spec.limit or 1) / run.steps
    return (
        f"{len(plan.schedule)} evaluations of {plan.episodes} greedy and {plan.episodes} sampled "
        f"episodes, and at the end {plan.absolute} of each: at most {share:.0%} of the steps"
    )
