"""A process that carries out one run: `python -m perla.suites.worker FOLDER`.

It reads the run as JSON from the first line of its standard input. If that input ends, whoever
started it has died, and it stops as at Ctrl-C: after its interval, resumable.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from perla.config import from_json
from perla.errors import UserError
from perla.runs.spec import Run


def work(run: Run, folder: Path) -> None:
    """Carry `run` out in `folder`, from wherever it stands: not begun, begun or finished.

    The run's environment is trusted, for whoever started this has asked for it; that of a folder
    that holds another run is not made. Raises `UserError` if the folder holds something else, or
    the run cannot be carried out.
    """
    from perla.runs import execute
    from perla.runs.store import Folder

    if not os.path.lexists(folder / "config.json"):
        execute.train(run, folder, pictures=False)
        return
    if Folder.open(folder).run(trust=True).identity != run.identity:
        raise UserError(f"{folder}: holds another run; choose another --out")
    execute.resume(folder, trust=(run.env,), pictures=False)


def main() -> int:
    """Exit status: 0, 2 for a mistake that trying again would not mend, or a signal's."""
    from perla.runs.interrupt import Interrupted

    try:
        run = from_json(sys.stdin.buffer.readline(), Run, source="standard input")
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        work(run, Path(sys.argv[1]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        return interrupted.exit_code
    return 0


def _stop_with_parent() -> None:
    # By the descriptor: a thread that held the stream's lock would abort the process at its end.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
