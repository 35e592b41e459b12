"""TensorBoard event files of any program."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from perla.analysis.importers.series import Options, Series, method_and_seed, named_return
from perla.errors import UserError
from perla.files import explained, read_regular

PATTERN = "*.tfevents.*"
KNOWN = (
    "test_return_mean",
    "return/mean",
    "return",
    "mean_episode_return",
    "charts/episodic_return",
    "eval/mean_reward",
    "rollout/ep_rew_mean",
)
"""Tags of the return in EPyMARL, perla, Mava, CleanRL and Stable-Baselines3."""
FLOATS = {
    1: ("float_val", "<f4"),
    2: ("double_val", "<f8"),
    3: ("int_val", "<i4"),
    9: ("int64_val", "<i8"),
}
"""TensorFlow's number types: the field with the values, and their layout in bytes."""


def is_source(folder: Path) -> bool:
    """True if event files are directly in `folder`."""
    return any(folder.glob(PATTERN))


def read(folder: Path, options: Options) -> list[Series]:
    """The scalars in `folder`, one seed's. Raises `UserError`, with the file and the reason, if a
    file is damaged or no tag is the return."""
    scalars: dict[str, dict[int, tuple[float, float]]] = {}
    for path in sorted(folder.glob(PATTERN)):
        _collect(path, scalars)
    if not scalars:
        raise UserError(f"{folder}: its event files have no scalars")
    tag = named_return(list(scalars), options, folder, known=KNOWN)
    points = sorted(scalars[tag].items())
    method, seed = method_and_seed([folder.name, *(parent.name for parent in folder.parents)])
    times = [time for _, (time, _) in points]
    return [
        Series(
            path=folder,
            source="TensorBoard",
            method=method,
            task=None,
            seed=seed,
            steps=[float(step) for step, _ in points],
            metrics={
                "return": [value for _, (_, value) in points],
                "wall_seconds": [time - times[0] for time in times],
            },
            meaning=(
                "steps are those of the event files, as their program counts them",
                f"returns are the scalar {tag}, and seconds count from its first value",
            ),
        )
    ]


def _collect(path: Path, scalars: dict[str, dict[int, tuple[float, float]]]) -> None:
    """Add the scalars of an event file: tag → step → (wall time, value). A restarted program
    replaces the values from its first step on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    for record in _records(path):
        try:
            event = Event.FromString(record)
        except Exception as error:  # protobuf's own kinds differ between its implementations.
            raise UserError(f"{path}: damaged ({error})") from None
        if event.session_log.status == SessionLog.START and event.step > 0:
            for points in scalars.values():
                for step in [step for step in points if step >= event.step]:
                    del points[step]
        for value in event.summary.value:
            number = _number(value)
            if number is not None:
                scalars.setdefault(value.tag, {})[event.step] = (event.wall_time, number)


def _number(value: Any) -> float | None:
    """The number of a scalar, in the old or the new layout; None of anything else."""
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return float(value.simple_value)
    if kind != "tensor" or value.tensor.dtype not in FLOATS:
        return None
    if any(axis.size != 1 for axis in value.tensor.tensor_shape.dim):
        return None
    field, layout = FLOATS[value.tensor.dtype]
    if len(getattr(value.tensor, field)) == 1:
        return float(getattr(value.tensor, field)[0])
    numbers = np.frombuffer(value.tensor.tensor_content, layout)
    return float(numbers[0]) if len(numbers) == 1 else None


def _records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length, its checksum, data, its checksum. The last one may be
    incomplete, as its program may be writing it. Raises `UserError` for a wrong checksum."""
    from tensorboardX.crc32c import crc32c

    with explained(path):
        data = read_regular(path)
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        start, end = at + 12, at + 12 + length
        if end + 4 > len(data) and _masked(crc32c(data[at : at + 8])) == _word(data, at + 8):
            return
        if end + 4 > len(data) or _masked(crc32c(data[start:end])) != _word(data, end):
            raise UserError(f"{path}: damaged (a wrong checksum at byte {at})")
        yield data[start:end]
        at = end + 4


def _masked(checksum: int) -> int:
    """TFRecord's mask of a CRC-32C."""
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _word(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])
