"""TensorBoard event files, written by tensorboardX through files that survive a kill."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perla.files import append
from perla.runs.loggers import scalars
from perla.runs.spec import Run
from perla.runs.store import Folder, Record

SCHEME = "perla"
"""Names `DurableFiles` among tensorboardX's file systems, as "s3" and "gs" name others."""


class TensorBoard:
    """Scalars as TensorBoard events: every metric for each seed, and its mean.

    TensorBoard ignores what an earlier process wrote into the folder after the records `latest`.
    """

    def __init__(self, folder: Folder, run: Run, latest: Sequence[Record]) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import register_writer_factory

        register_writer_factory(SCHEME, DurableFiles)
        self.writer = EventsWriter(f"{SCHEME}:{folder.path / 'events'}")
        purge_step = latest[0]["step"] + 1 if latest else 0
        log = SessionLog(status=SessionLog.START)
        self.writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=log))
        self.writer.flush()

    def consume(self, records: Sequence[Record]) -> None:
        """Write the scalars of one evaluation durably."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        summary = Summary()
        for name, value in scalars(records).items():
            summary.value.add(tag=name, simple_value=value)
        event = Event(wall_time=time.time(), step=records[0]["step"], summary=summary)
        self.writer.write_event(event)
        self.writer.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: every evaluation is written at once."""


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
