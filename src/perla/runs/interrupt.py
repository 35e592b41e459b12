"""Immediate reaction to Ctrl-C and other signals, even while a compiled program runs."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from perla.errors import resume_command

STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
"""Signals at which a run saves a checkpoint and stops."""
SAVING = signal.SIGUSR1
"""The signal at which a run saves a checkpoint and continues."""


class Interrupted(Exception):
    """The run stopped on request. Its folder holds everything needed to resume it."""

    def __init__(self, folder: object, signum: int) -> None:
        super().__init__(f"interrupted; `{resume_command(folder)}` continues")
        self.exit_code = 128 + signum


class Requests:
    """The requests so far."""

    signum: int | None = None
    """The first signal that asks to stop, or None."""
    save = False
    """True if a checkpoint is asked for."""

    @property
    def pending(self) -> bool:
        """True if a checkpoint is asked for, to stop or to continue."""
        return self.save or self.signum is not None

    def take_save(self) -> bool:
        """`save`, which becomes false."""
        save, self.save = self.save, False
        return save


@contextmanager
def listening(
    say: Callable[[str], None], abandon: Callable[[], None], requests: Requests
) -> Iterator[None]:
    """Collect signals in `requests` instead of ending the process.

    While compiled code runs, Python's own handlers wait for it to return. So a thread listens: at
    the first signal that asks to stop it tells the user with `say`; at the second it calls
    `abandon` and ends the process at once, which is safe because a run folder can be resumed from
    any moment. SIGHUP stays ignored if it is (by `nohup`). Outside the main thread, where signals
    cannot be caught, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def listen() -> None:
        while byte := reader.recv(1):
            if byte[0] == SAVING:
                requests.save = True
                continue
            if byte[0] not in signals:
                continue
            if requests.signum is not None:
                abandon()
                os._exit(128 + byte[0])
            requests.signum = byte[0]
            say("stopping at the next checkpoint; press Ctrl-C again to stop at once")

    signals = STOPPING | {SAVING}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signals = signals - {signal.SIGHUP}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    previous_wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    previous = {s: signal.signal(s, lambda *_: None) for s in signals}
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
        signal.set_wakeup_fd(previous_wakeup)
        writer.close()
        thread.join(timeout=1.0)
        reader.close()
