"""Worker process of a calculation: `python -m perla.experiments.worker CORES`.

It reads pickles from standard input: first `sys.path`, then pickled functions. For each function it
writes one line of JSON, `{"result": …}`, to standard output, or `{"error": "…"}` for a
`UserError`. It ends when the input ends, in the middle of a computation too.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import sys
import threading
from typing import Any

from perla.errors import UserError


def main() -> None:
    """Compute on the processor cores `CORES`, a list of numbers with commas."""
    from perla.runs import backend

    cores = [int(core) for core in sys.argv[1].split(",")]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # XLA starts no more threads than these.
    backend.prepare()
    # What a computation prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    functions: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(functions,), daemon=True).start()
    while True:
        compute = pickle.loads(functions.get())
        answer: dict[str, Any]
        try:
            answer = {"result": compute()}
        except UserError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _read(functions: queue.SimpleQueue[bytes]) -> None:
    # Not `sys.stdin`: a thread that holds its lock aborts the process when the main thread ends.
    source = os.fdopen(0, "rb", closefd=False)
    try:
        sys.path[:] = pickle.load(source)
        while True:
            functions.put(pickle.load(source))
    except EOFError:
        os._exit(1)


if __name__ == "__main__":
    main()
