"""Parts of a calculation: kept, shared among processes, gone on with."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from perla.errors import UserError
from perla.experiments.cache import place, recall
from perla.experiments.experiment import Part


def half(x):
    return [x / 2, os.getpid()]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def mistake():
    raise UserError("no such thing")


def cores():
    time.sleep(1.0)  # So that the other process takes the other part.
    return sorted(os.sched_getaffinity(0))


def parts(count, compute=half):
    return [Part(f"half of {i}", [i], partial(compute, i)) for i in range(count)]


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_with_progress(tmp_path, processes):
    said = []
    found = recall(parts(4), tmp_path, processes=processes, say=said.append)
    assert [value for value, _ in found] == [0.0, 0.5, 1.0, 1.5]
    mine = {process == os.getpid() for _, process in found}
    assert mine == {processes == 1}
    assert [line.split(": ")[1] for line in said] == [
        f"{done} of 4, 0 min left" for done in (1, 2, 3, 4)
    ]


def test_the_longest_go_first_and_the_estimate_knows(tmp_path, monkeypatch):
    clock = [0.0]

    def take(minutes):
        clock[0] += 60.0 * minutes
        return minutes

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    weighed = [Part(f"{n}", [], partial(take, n), weight=n / 2) for n in (2, 8, 4)]
    said = []
    assert recall(weighed, tmp_path, processes=1, say=said.append) == [2, 8, 4]
    assert said == ["8: 1 of 3, 6 min left", "4: 2 of 3, 2 min left", "2: 3 of 3, 0 min left"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores cannot be told apart")
def test_processes_share_the_cores(tmp_path):
    mine = sorted(os.sched_getaffinity(0))
    found = recall([Part(name, [], cores) for name in "ab"], tmp_path, processes=2)
    assert sorted(found) == sorted([mine[::2], mine[1::2] or mine])
    assert sorted(os.sched_getaffinity(0)) == mine


def test_what_was_found_is_not_computed_again(tmp_path):
    def once():
        calls.append(1)
        return [1.5]

    calls = []
    for depends in ([3], [3], [4]):
        assert recall([Part("vdn, N = 2", depends, once)], tmp_path, processes=1) == [[1.5]]
    assert len(calls) == 2
    for file in tmp_path.iterdir():
        file.write_text("{")
    with pytest.raises(UserError, match="holds no result; delete it"):
        recall([Part("vdn, N = 2", [3], once)], tmp_path)


def test_what_several_ask_for_is_computed_once(tmp_path):
    said = []
    first, second, third = recall([*parts(1), *parts(2)], tmp_path, processes=1, say=said.append)
    assert first == second != third
    assert len(said) == 2


def test_a_process_that_dies_is_said_and_what_was_found_stays(tmp_path):
    whole = parts(2)
    recall(whole, tmp_path, processes=1)
    with pytest.raises(UserError, match=r"a process died.*goes on.*--processes 1"):
        recall([*whole, Part("a", [], die), Part("b", [], die)], tmp_path, processes=2)
    assert {path.name for path in tmp_path.iterdir()} == {place(part) for part in whole}


def test_a_mistake_in_a_process_is_said_in_its_own_words(tmp_path):
    with pytest.raises(UserError, match=r"^no such thing$"):
        recall([Part("a", [], mistake), Part("b", [], mistake)], tmp_path, processes=2)


PROGRAM = """
import functools, sys, time
from pathlib import Path
from perla.experiments.experiment import Part
from perla.experiments.cache import recall

if __name__ == "__main__":
    naps = [functools.partial(time.sleep, seconds) for seconds in (0, 600, 600)]
    parts = [Part(str(i), [], nap) for i, nap in enumerate(naps)]


    def say(text):
        print(text, flush=True)
        time.sleep(float(sys.argv[2]))

    recall(parts, Path(sys.argv[1]), processes=2, say=say)
"""


@pytest.mark.parametrize("busy", [0, 600])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_nothing_goes_on_without_those_who_asked(tmp_path, signum, busy):
    """Interrupted or killed, while it waits or is busy with a result, whoever asked takes its
    processes along."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    asking = subprocess.Popen(
        [sys.executable, program, tmp_path / "parts", str(busy)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert asking.stdout.readline().startswith(b"0: 1 of 3")
    os.kill(asking.pid, signum)
    asking.communicate(timeout=30)  # Ends when the last who could write has.
    assert len(list((tmp_path / "parts").iterdir())) == 1
