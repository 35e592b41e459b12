"""Search spaces: the values that each tuned setting may take."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from perla.config import Config, Positive, decode, members, to_plain
from perla.errors import UserError, nearest
from perla.files import decode as decode_json
from perla.files import explained, read_regular
from perla.methods.method import Method
from perla.methods.recipes import make
from perla.methods.settings import ALIASES, available, every_setting, override, unknown

PAPER: Mapping[str, Any] = {
    "hidden_size": [64, 128, 256],
    "lr": [3e-4, 5e-4],
    "actor_network": ["mlp", "gru"],
    "normalize_rewards": [False, True],
    "ent_coef": [1e-3, 1e-2, 1e-1],
    "target": ["hard", "soft"],
    "target_update_interval": {"choices": [200], "when": {"target": "hard"}},
    "target_update_tau": {"choices": [0.01], "when": {"target": "soft"}},
    "returns": ["n-step"],
    "n_step": {"choices": [5, 10], "when": {"returns": "n-step"}},
    "estimator": ["sampled"],
    "num_samples": {"choices": [10, 100], "when": {"estimator": "sampled"}},
}
"""The space of the paper (Table 3). Its "network type" is the actor's, as in EPyMARL, and its
"number of PERLA samples" belongs to the sampled estimator."""
NAMED: Mapping[str, Mapping[str, Any]] = {"paper": PAPER}
"""Spaces by name."""
MOST_COMBINATIONS = 10_000
"""Combinations of choices that are counted; a larger space counts as infinite."""


class Dimension(Config, frozen=True, kw_only=True):
    """The values of one setting: some choices, or a range of numbers."""

    choices: Annotated[tuple[Any, ...], Meta(min_length=1)] | None = None
    """The values, in no order."""
    low: int | float | None = None
    """The least number of a range."""
    high: int | float | None = None
    """The largest number of a range."""
    log: bool = False
    """Draw the logarithm of the number uniformly, instead of the number."""
    step: Positive | None = None
    """Distance between the numbers of a range; none: 1 for whole numbers, any for others."""
    when: dict[str, Any] = msgspec.field(default_factory=dict)
    """The values of other tuned settings with which this one is set, such as a variant that it
    belongs to. It is left out otherwise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.choices is not None:
            if (self.low, self.high, self.step, self.log) != (None, None, None, False):
                raise UserError("expected choices, or low and high, not both")
            if any(same(a, b) for a, b in itertools.combinations(self.choices, 2)):
                raise UserError("a choice occurs twice")
            return
        if self.low is None or self.high is None:
            raise UserError("expected choices, or low and high")
        if self.low >= self.high:
            raise UserError(f"low {self.low} is not below high {self.high}: an empty range")
        if self.log and self.step is not None:
            raise UserError("log and step exclude each other")
        if self.log and self.low <= 0:
            raise UserError(f"low {self.low}: a range with log lies above 0")
        if self.step is not None:
            steps = (self.high - self.low) / self.step
            if abs(steps - round(steps)) > 1e-9 * max(1.0, steps):
                last = self.low + math.floor(steps) * self.step
                raise UserError(
                    f"high {self.high} is no multiple of step {self.step} above low {self.low}; "
                    f"the last number below it is {last:g}"
                )

    def ends(self) -> tuple[Any, ...]:
        """The values that are checked: all choices, or both ends of the range."""
        return (self.low, self.high) if self.choices is None else self.choices

    def is_set(self, settings: Mapping[str, Any]) -> bool:
        """True if this setting belongs to those that are chosen already."""
        return all(name in settings and same(settings[name], v) for name, v in self.when.items())


Space = Mapping[str, Dimension]
"""Setting → its values. A setting follows those that it depends on."""


def same(one: Any, other: Any) -> bool:
    """True if two values of a setting are equal and of one type: 1 is not true."""
    return type(one) is type(other) and one == other


def read_space(source: str | Mapping[str, Any], algo: str) -> tuple[Space, list[str]]:
    """The space called `source` in `NAMED`, in the JSON file `source`, or in a mapping; and the
    names that were left out of a named one, as they are no settings of `algo`.

    A dimension is a list of choices, an object with the fields of `Dimension`, or a distribution of
    Optuna. Raises `UserError`, with the position, for a mistake in the space.
    """
    if isinstance(source, str) and source in NAMED:
        own = available(make(algo))
        space = _space(NAMED[source], source)
        left = [name for name in space if name not in own]
        kept = {name: each for name, each in space.items() if name not in left}
        if not kept:
            raise UserError(f"--space {source}: has no setting of {algo}")
        return kept, left
    if isinstance(source, str):
        path = Path(source)
        if not path.exists() and not path.suffix and "/" not in source:
            raise nearest(source, [*NAMED, "FILE.json"], what="space")
        with explained(path):
            text = read_regular(path, follow=True)
        return _space(decode_json(text, Any, source=path), str(path)), []
    return _space(source, "space"), []


def _space(plain: Any, source: str) -> Space:
    if not isinstance(plain, Mapping) or not plain:
        raise UserError(f'{source}: expected settings and their values, such as {{"lr": [1e-3]}}')
    named = {
        str(ALIASES.get(name, name)): _dimension(each, name, source) for name, each in plain.items()
    }
    if len(named) < len(plain):
        raise UserError(f"{source}: a setting occurs twice, also by its second name")
    ordered: dict[str, Dimension] = {}
    while len(ordered) < len(named):
        waiting = [name for name in named if name not in ordered]
        ready = [name for name in waiting if set(named[name].when) <= set(ordered)]
        if not ready:
            name = waiting[0]
            raise UserError(
                f"{source}: {name}: `when` names {', '.join(named[name].when)}, and must name "
                "other settings of the space, without a circle"
            )
        ordered[ready[0]] = named[ready[0]]
    for name, dimension in ordered.items():
        for other, value in dimension.when.items():
            if not any(same(value, choice) for choice in ordered[other].choices or ()):
                raise UserError(f"{source}: {name}: `when` {other} is {value!r}, no choice of it")
    return ordered


def _dimension(plain: Any, name: str, source: str) -> Dimension:
    if hasattr(plain, "to_internal_repr"):
        plain = _of_optuna(plain)
    plain = _lists(to_plain(plain))
    if isinstance(plain, list):
        plain = {"choices": plain}
    if not isinstance(plain, dict):
        raise UserError(
            f'{source}: {name}: expected a list of values or {{"low": …, "high": …}}, got {plain!r}'
        )
    try:
        return decode(plain, Dimension, path=f"$.{name}")
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _of_optuna(distribution: Any) -> dict[str, Any]:
    """The fields of a `Dimension` in a distribution of Optuna."""
    if hasattr(distribution, "choices"):
        return {"choices": list(distribution.choices)}
    fields = {name: getattr(distribution, name) for name in ("low", "high", "log", "step")}
    if fields["log"]:
        fields["step"] = None
    return fields


def _lists(value: Any) -> Any:
    """`value` with lists for tuples, as JSON has them."""
    if isinstance(value, (list, tuple)):
        return [_lists(each) for each in value]
    return {n: _lists(v) for n, v in value.items()} if isinstance(value, dict) else value


# --- Checks -------------------------------------------------------------------------------------


def check_space(space: Space, algo: str, base: Method, given: Iterable[str] = ()) -> None:
    """Raise `UserError` if `algo` refuses a value of `space` on top of the settings `base`: one at
    a time, and beside each choice of another setting; or if the user has `given` one of them."""
    fixed = {ALIASES.get(name, name) for name in given}
    for name in space:
        if name not in every_setting():
            raise unknown(name, [algo], every_setting(), what="setting")
        if name in fixed:
            raise UserError(f"{name}: is in the space, and is given beside it; leave one out")
    first = {name: dimension.ends()[0] for name, dimension in space.items()}
    for name, dimension in space.items():
        for value in dimension.ends():
            _check_values(space, {**first, **dimension.when, name: value}, algo, base)
    deciding = {field for each in every_setting().values() for field, _ in each.within}
    for (_, one), (other, two) in itertools.permutations(space.items(), 2):
        if other in deciding and other not in one.when:
            for value in (two.choices or ())[1:]:
                _check_values(space, {**first, **one.when, other: value}, algo, base)


def _check_values(space: Space, chosen: Mapping[str, Any], algo: str, base: Method) -> None:
    """Configure the method with those of the `chosen` settings that apply."""
    settings = consistent(space, chosen)
    try:
        override(algo, base, settings)
    except UserError as error:
        raise UserError(f"space: {error}{_hint(space, settings)}") from None


def _hint(space: Space, settings: Mapping[str, Any]) -> str:
    """The `when` that a setting of a variant needs, if one lacks it."""
    for name in settings:
        for field, variant in every_setting()[name].within:
            if field in settings and settings[field] != variant and field not in space[name].when:
                return f'; add "when": {{"{field}": "{variant}"}} to {name}'
    return ""


def consistent(space: Space, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The `chosen` settings without those whose `when` they do not meet."""
    kept: dict[str, Any] = {}
    for name, dimension in space.items():
        if name in chosen and dimension.is_set(kept):
            kept[name] = chosen[name]
    return kept


def combinations(space: Space) -> int | None:
    """The number of different settings in `space`; None if it has a range, or very many."""
    partial: list[dict[str, Any]] = [{}]
    for name, dimension in space.items():
        if dimension.choices is None:
            return None
        partial = list(_extended(partial, name, dimension))
        if len(partial) > MOST_COMBINATIONS:
            return None
    return len(partial)


def _extended(
    partial: list[dict[str, Any]], name: str, dimension: Dimension
) -> Iterator[dict[str, Any]]:
    for chosen in partial:
        values = (dimension.choices or ()) if dimension.is_set(chosen) else (None,)
        for value in values:
            yield {**chosen, name: value} if dimension.is_set(chosen) else chosen


def takes_floats(name: str) -> bool:
    """True if the setting `name` is any number, and not a whole one."""
    kinds = members(every_setting()[name].type)
    return any(float in (kind, getattr(kind, "__origin__", None)) for kind in kinds)


def check_trials(space: Space, trials: int, *, name: str = "trials") -> None:
    """Raise `UserError` if `space` has fewer different settings than `trials`."""
    most = combinations(space)
    if most is not None and trials > most:
        raise UserError(
            f"{name} {trials}: the space has {most} different settings; {name} {most} tries all"
        )
