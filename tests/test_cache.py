"""Jobs of a calculation: cached, shared among processes, continued."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from perla.errors import UserError
from perla.experiments.cache import cached, file_name
from perla.experiments.experiment import Job


def half(x):
    return [x / 2, os.getpid()]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def mistake():
    raise UserError("no such thing")


def cores():
    time.sleep(1.0)  # So that the other process takes the other job.
    return sorted(os.sched_getaffinity(0))


def jobs(count, compute=half):
    return [Job(f"half of {i}", [i], partial(compute, i)) for i in range(count)]


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_with_progress(tmp_path, processes):
    messages = []
    found = cached(jobs(4), tmp_path, processes=processes, say=messages.append)
    assert [value for value, _ in found] == [0.0, 0.5, 1.0, 1.5]
    mine = {process == os.getpid() for _, process in found}
    assert mine == {processes == 1}
    assert [line.split(": ")[1] for line in messages] == [
        f"{done} of 4, 0 min left" for done in (1, 2, 3, 4)
    ]


def test_the_longest_go_first_and_the_estimate_knows(tmp_path, monkeypatch):
    clock = [0.0]

    def take(minutes):
        clock[0] += 60.0 * minutes
        return minutes

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    weighed = [Job(f"{n}", [], partial(take, n), weight=n / 2) for n in (2, 8, 4)]
    messages = []
    assert cached(weighed, tmp_path, processes=1, say=messages.append) == [2, 8, 4]
    assert messages == ["8: 1 of 3, 6 min left", "4: 2 of 3, 2 min left", "2: 3 of 3, 0 min left"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores cannot be told apart")
def test_processes_share_the_cores(tmp_path):
    mine = sorted(os.sched_getaffinity(0))
    found = cached([Job(name, [], cores) for name in "ab"], tmp_path, processes=2)
    assert sorted(found) == sorted([mine[::2], mine[1::2] or mine])
    assert sorted(os.sched_getaffinity(0)) == mine


def test_results_are_not_computed_again(tmp_path):
    def once():
        calls.append(1)
        return [1.5]

    calls = []
    for depends in ([3], [3], [4]):
        assert cached([Job("vdn, N = 2", depends, once)], tmp_path, processes=1) == [[1.5]]
    assert len(calls) == 2
    for file in tmp_path.iterdir():
        file.write_text("{")
    with pytest.raises(UserError, match="holds no result; delete it"):
        cached([Job("vdn, N = 2", [3], once)], tmp_path)


def test_a_job_asked_for_twice_is_computed_once(tmp_path):
    messages = []
    first, second, third = cached([*jobs(1), *jobs(2)], tmp_path, processes=1, say=messages.append)
    assert first == second != third
    assert len(messages) == 2


def test_a_process_that_dies_is_named_and_earlier_results_stay(tmp_path):
    whole = jobs(2)
    cached(whole, tmp_path, processes=1)
    with pytest.raises(
        UserError, match=r"a process died \(killed by SIGKILL\).*continues.*--processes 1"
    ):
        cached([*whole, Job("a", [], die), Job("b", [], die)], tmp_path, processes=2)
    assert {path.name for path in tmp_path.iterdir()} == {file_name(job) for job in whole}


def test_a_user_error_in_a_process_is_raised_as_it_is(tmp_path):
    with pytest.raises(UserError, match=r"^no such thing$"):
        cached([Job("a", [], mistake), Job("b", [], mistake)], tmp_path, processes=2)


def bug():
    return 1 / 0


def test_an_exception_in_a_process_comes_with_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match=r"in bug\n(.*\n)*ZeroDivisionError"):
        cached([Job("a", [], bug), Job("b", [], bug)], tmp_path, processes=2)


def chatty():
    print("a line of output")
    os.system("echo another")
    return 1


def test_output_of_a_job_is_no_answer(tmp_path):
    assert cached([Job(name, [], chatty) for name in "ab"], tmp_path, processes=2) == [1, 1]


NAPS = """
import os, time
from pathlib import Path

def nap(folder, seconds):
    Path(folder, str(os.getpid())).touch()
    time.sleep(seconds)
"""
PROGRAM = """
import functools, signal, sys, time
from pathlib import Path
from naps import nap
from perla.experiments.experiment import Job
from perla.experiments.cache import cached

# A shell's background jobs ignore SIGINT, and so would what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

results, pids, busy = sys.argv[1:]
jobs = [Job(str(s), [], functools.partial(nap, pids, s)) for s in (0, 600, 601)]


def say(text):
    while len(list(Path(pids).iterdir())) < 2:
        time.sleep(0.1)
    print(text, flush=True)
    time.sleep(float(busy))

cached(jobs, Path(results), processes=2, say=say)
"""


def runs(pid):
    """Whether a process is running, and not a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("busy", [0, 600])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_no_process_outlives_its_parent(tmp_path, signum, busy):
    """A parent that is interrupted or killed takes its processes along, whether it waits or is busy
    with a result."""
    program, pids = tmp_path / "program.py", tmp_path / "pids"
    program.write_text(PROGRAM)
    (tmp_path / "naps.py").write_text(NAPS)
    pids.mkdir()
    parent = subprocess.Popen(
        [sys.executable, program, tmp_path / "results", pids, str(busy)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert parent.stdout.readline().startswith(b"0: 1 of 3")
    children = [path.name for path in pids.iterdir()]
    assert len(children) == 2
    assert all(map(runs, children))
    os.kill(parent.pid, signum)
    parent.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while any(map(runs, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(runs, children))
    assert len(list((tmp_path / "results").iterdir())) == 1
