"""Worker process that carries out one run: `python -m perla.suites.worker FOLDER`.

It reads the run as JSON from the first line of standard input. At `SAVE` after that it saves a
checkpoint. When standard input ends, its parent has died; it then stops as at Ctrl-C: after the
present interval, resumable.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from perla.config import from_json
from perla.errors import UserError
from perla.runs.interrupt import SAVING
from perla.runs.spec import Run

SAVE = b"s"
"""The byte by which a parent asks for a checkpoint."""


def work(run: Run, folder: Path) -> None:
    """Carry out `run` in `folder`: start it, resume it, or nothing if it is finished. Another
    process may begin the same run at the same time.

    The environment of `run` is trusted, as the parent has asked for it; the environment of another
    run in the folder is not created. Raises `FolderBusy` if another process carries the run out,
    and `UserError` if the folder holds anything else, or the run cannot be carried out.
    """
    from perla.runs import execute
    from perla.runs.store import Folder, FolderUsed

    if not os.path.lexists(folder / "config.json"):
        try:
            execute.train(run, folder, pictures=False)
            return
        except FolderUsed:
            if not os.path.lexists(folder / "config.json"):
                raise
    if Folder.open(folder).run(trust=True).identity != run.identity:
        raise UserError(f"{folder}: holds another run; choose another --out")
    execute.resume(folder, trust=(run.env,), pictures=False)


def main() -> int:
    """Return the exit status: 0, 2 after a `UserError`, `BUSY`, or that of a signal."""
    from perla.runs.interrupt import Interrupted
    from perla.runs.store import FolderBusy
    from perla.suites.processes import BUSY

    try:
        run = from_json(sys.stdin.buffer.readline(), Run, source="standard input")
        signal.signal(SAVING, signal.SIG_IGN)  # There is nothing to save before the run begins.
        threading.Thread(target=_obey_parent, daemon=True).start()
        work(run, Path(sys.argv[1]))
    except FolderBusy as error:
        print(error, file=sys.stderr)
        return BUSY
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        return interrupted.exit_code
    return 0


def _obey_parent() -> None:
    # Not `sys.stdin`: a thread that holds its lock aborts the process when the main thread ends.
    while os.read(sys.stdin.fileno(), 1) == SAVE:
        os.kill(os.getpid(), SAVING)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
