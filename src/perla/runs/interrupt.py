"""Immediate reaction to Ctrl-C, even while a compiled program runs."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(Exception):
    """The run stopped on request. Its folder holds everything needed to resume it."""

    def __init__(self, folder: object, signum: int) -> None:
        super().__init__(f"interrupted; `perla resume {folder}` continues")
        self.exit_code = 128 + signum


class Requests:
    """The requests so far: `signum` of the first signal, or None."""

    signum: int | None = None


@contextmanager
def listening(say: Callable[[str], None], abandon: Callable[[], None]) -> Iterator[Requests]:
    """Collect Ctrl-C and termination requests instead of ending the process.

    While compiled code runs, Python's own handlers wait for it to return. So a thread listens: at
    the first signal it tells the user with `say`; at the second it calls `abandon` and ends the
    process at once, which is safe because a run folder can be resumed from any moment.
    Outside the main thread, where signals cannot be caught, this does nothing.
    """
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return

    def listen() -> None:
        while byte := reader.recv(1):
            if byte[0] not in signals:
                continue
            if requests.signum is not None:
                abandon()
                os._exit(128 + byte[0])
            requests.signum = byte[0]
            say("stopping after this interval; press Ctrl-C again to stop at once")

    signals = {int(signal.SIGINT), int(signal.SIGTERM)}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    previous_wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    previous = {s: signal.signal(s, lambda *_: None) for s in signals}
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield requests
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
        signal.set_wakeup_fd(previous_wakeup)
        writer.close()
        thread.join(timeout=1.0)
        reader.close()
