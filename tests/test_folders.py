"""A run folder or a suite's from somebody else: what lies in it is read, and nothing outside of it
is read, written or removed."""

from __future__ import annotations

import itertools
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from perla.analysis import gather
from perla.analysis import load as analysis
from perla.cli import main
from perla.envs import registry
from perla.errors import UserError
from perla.files import append, make_below, write_atomic
from perla.runs import checkpoint
from perla.suites import execute, local, suite
from perla.suites.display import Silent, progress_of
from perla.suites.executors import Event
from perla.suites.suite import Cell, Grid, Suite, slug
from untrusted import (  # noqa: F401
    COMMANDS,
    RUN,
    fixture_folder,
    fixture_here,
    fixture_refused,
    fixture_whole,
    write_suite,
)

pytestmark = pytest.mark.usefixtures("here")

# --- A run folder holds what lies in it, and nothing else ---------------------------------------


def link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def dangling(path: Path, outside: Path) -> None:
    path.symlink_to(outside.with_name("nowhere"))


def pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def bound(path: Path, outside: Path) -> None:
    os.chdir(path.parent)  # Names of sockets are short.
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(outside.parent)


def turned(path: Path, outside: Path) -> None:
    """A directory for a file, and the reverse."""
    path.write_text("") if outside.is_dir() else path.mkdir()


SAID = {
    link: "is a symbolic link, not",
    dangling: "is a symbolic link, not",
    pipe: "is a pipe, not",
    bound: "is a socket, not",
    turned: "is a ",
}
ENTRIES = (
    *("config.json", "metrics.jsonl", "summary.json", "marl_eval.json", "checkpoints"),
    *("checkpoints/newest", "events"),
)


def spoil(folder: Path, entry: str, spoiled: Any) -> Path:
    """Put something else in the place of an entry, which lies outside from now on."""
    path = folder / entry
    if entry == "checkpoints/newest":
        path = checkpoint.newest_first(folder / "checkpoints")[0]
    if entry == "events":
        (path,) = folder.glob("events.*")
    outside = folder.parent / "outside"
    path.rename(outside)
    spoiled(path, outside)
    return path


def contents(path: Path) -> dict[str, bytes]:
    files = [path, *sorted(path.rglob("*"))]
    return {str(file): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize(
    ("entry", "spoiled"),
    # A directory by any other name is the user's own.
    [pair for pair in itertools.product(ENTRIES, SAID) if pair != ("events", turned)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_is_no_file_of_the_folder_is_refused(refused, folder, entry, spoiled):
    path = spoil(folder, entry, spoiled)
    before = contents(folder.parent / "outside")
    for command in COMMANDS:
        line = refused(command, str(folder))
        assert f"perla: {path}: {SAID[spoiled]}" in line
    with pytest.raises(UserError, match=path.name):
        analysis.load(folder)
    assert contents(folder.parent / "outside") == before
    progress_of(folder)  # does not wait


def test_devices_are_refused(refused, folder):
    path = folder / "config.json"
    path.unlink()
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
    except OSError:
        pytest.skip("only root makes devices")
    assert "is a device, not a file" in refused("resume", str(folder))


def test_the_folder_that_the_user_names_may_be_a_link(folder, capsys):
    Path("link").symlink_to(folder)
    for command in COMMANDS:
        assert main([command, "link"]) == 0
    assert [source.path for source in gather.find("link")] == [Path("link")]
    assert analysis.load(Path("link")).finished


def test_runs_are_not_looked_for_behind_links(folder):
    Path("runs").mkdir()
    Path("runs/link").symlink_to(folder.rename("elsewhere"))
    with pytest.raises(UserError, match="no run folder"):
        gather.find("runs")


def test_a_payoff_file_is_a_file(here):
    os.mkfifo("pipe.json")
    with pytest.raises(UserError, match=r"pipe\.json: is a pipe, not a file"):
        registry.make_env("matrix:pipe.json")
    Path("payoffs.json").write_text("[[1, 2], [3, 4]]")
    Path("link.json").symlink_to("payoffs.json")
    assert registry.make_env("matrix:link.json").spec.agents == 2


# --- Nothing outside is written or removed ------------------------------------------------------


def test_nothing_is_written_through_a_link(here):
    outside, path = here / "outside", here / "inside/file"
    outside.write_text("theirs")
    path.parent.mkdir()
    path.symlink_to(outside)
    with pytest.raises(UserError, match="is a symbolic link"):
        append(path, b"more")
    (path.parent / f".file.{os.getpid()}.tmp").symlink_to(outside)
    write_atomic(path, b"ours")
    assert (outside.read_text(), path.read_bytes()) == ("theirs", b"ours")
    assert not path.is_symlink()
    os.mkfifo(path.with_name("pipe"))
    with pytest.raises(UserError, match="is a pipe"):
        append(path.with_name("pipe"), b"more")


def test_directories_are_made_below_and_nowhere_else(here):
    (here / "base").mkdir()
    (here / "base/link").symlink_to(here)
    (here / "link").symlink_to(here / "base")
    assert make_below(here / "link", Path("a/b")).is_dir()
    for way in ("../out", "a/../../out", str(here / "out")):
        with pytest.raises(UserError, match="leads out of"):
            make_below(here / "base", Path(way))
    with pytest.raises(UserError, match="link: is a symbolic link, not a directory"):
        make_below(here / "base", Path("link/out"))
    assert not (here / "out").exists()


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", ".", "..", "", "a\\b"])
def test_a_suite_is_called_by_a_name_and_no_path(refused, name):
    write_suite(name=name)
    assert "suite.json: name = " in refused("suite", "suite.json")


@pytest.mark.parametrize("word", ["..", ".", "", "../..", "/", "a/../../b"])
def test_the_folder_of_a_cell_is_below_the_suites(word):
    cell = Cell(word, {}, RUN.replace(env=f"{word}"))
    assert "/" not in slug(word)
    assert ".." not in cell.folder.parts
    assert len(cell.folder.parts) == 3


@pytest.mark.parametrize("place", ["cells", "cells/matrix-climbing", "cell", "log"])
def test_a_suites_folder_leads_nowhere_else(capfd, here, place):
    write_suite(algo=["ippo", "mappo"])
    cells = suite.load(Path("suite.json")).cells()
    folder = here / "out" / cells[0].folder
    path = {"cell": folder, "log": local.log_of(folder)}.get(place, here / "out" / place)
    path.parent.mkdir(parents=True)
    outside = here / "outside"
    outside.write_text("theirs") if place == "log" else outside.mkdir()
    path.symlink_to(outside)

    class Nobody:
        def carry_out(self, tasks):
            for task in tasks:
                local.start(task, local.log_of(task.folder), {}, ("-c", "")).popen.wait()
                yield Event(task, "failed", "nobody is there")

    if place == "log":
        with pytest.raises(UserError, match="log: is a symbolic link"):
            execute.carry_out(cells, here / "out", Nobody(), Silent())
        assert outside.read_text() == "theirs"
        return
    outcome = execute.carry_out(cells, here / "out", Nobody(), Silent())
    assert f"{path}: is a symbolic link, not a directory" in outcome.failures[cells[0].name]
    assert not list(outside.iterdir())


def test_a_cell_that_is_spoilt_is_named_and_the_rest_goes_on(folder):
    """What a finished cell's folder holds is read as carefully as that of one at work."""
    cell = Suite(name="x", grids=(Grid(env=RUN.env, algo="ippo", steps=20, seeds=1),)).cells()[0]
    place = Path("out") / cell.folder
    place.parent.mkdir(parents=True)
    spoil(folder, "metrics.jsonl", link)
    folder.rename(place)
    outcome = execute.carry_out([cell], Path("out"), local.Local(1), Silent())
    assert "metrics.jsonl: is a symbolic link" in outcome.failures[cell.name]


def test_ray_sends_and_clears_nothing_from_outside(folder):
    from perla.suites import ray

    path = spoil(folder, "checkpoints", link)
    (folder.parent / "outside/.x.1.tmp").write_text("theirs")
    with pytest.raises(UserError, match="is a symbolic link"), ray.locked(folder):
        pass
    assert (folder.parent / "outside/.x.1.tmp").exists()
    assert path.name not in ray.contents(folder)
    with pytest.raises(UserError, match="leads out of"):
        ray.apply(folder, ray.Files({"../outside.json": b""}))
