"""TensorBoard event files, written by tensorboardX through files that survive a kill."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path

from perla.files import append
from perla.runs.store import Record, finite_values, mean, metrics

SCHEME = "perla"
"""Names `DurableFiles` among tensorboardX's file systems, as "s3" and "gs" name others."""


class TensorBoard:
    """Scalars as TensorBoard events: every metric for each seed, and its mean.

    TensorBoard ignores what an earlier process wrote into the folder from `purge_step` on.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import register_writer_factory

        register_writer_factory(SCHEME, DurableFiles)
        self.writer = EventsWriter(f"{SCHEME}:{folder / 'events'}")
        log = SessionLog(status=SessionLog.START)
        self.writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=log))
        self.writer.flush()

    def consume(self, records: Sequence[Record]) -> None:
        """Write the scalars of one evaluation durably."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        summary = Summary()
        for record in records:
            for name, value in metrics(record).items():
                if value is not None:
                    summary.value.add(tag=f"{name}/seed_{record['seed']}", simple_value=value)
        for name in metrics(records[0]):
            if values := finite_values(records, name):
                summary.value.add(tag=f"{name}/mean", simple_value=mean(values))
        event = Event(wall_time=time.time(), step=records[0]["step"], summary=summary)
        self.writer.write_event(event)
        self.writer.flush()


class DurableFiles:
    """The file system of tensorboardX's writer: it opens `DurableFile`s."""

    @staticmethod
    def open(path: str) -> DurableFile:
        """The file at `path`, which begins with the scheme."""
        return DurableFile(Path(path.removeprefix(f"{SCHEME}:")))


class DurableFile:
    """A file that `flush` appends to durably, whole or not at all.

    tensorboardX's own file would follow a symbolic link, overwrite what is there, and hold half a
    record after a kill or on a full disk.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.buffer = path, io.BytesIO()

    def write(self, data: bytes) -> None:
        """Hold `data` until `flush`."""
        self.buffer.write(data)

    def flush(self) -> None:
        """Append the data written since the last call."""
        append(self.path, self.buffer.getvalue())
        self.buffer = io.BytesIO()
