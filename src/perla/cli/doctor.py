"""`perla doctor`: is this machine ready, and what to do about what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from perla.cli.parser import Parser
from perla.errors import visible

OPTIONAL = {
    "lbforaging": "the original foraging, for `make test-all`",
    "gymnasium-robotics": "worlds of multi-agent MuJoCo; `pip install 'perla[mujoco]'`",
    "jaxmarl": "the worlds jaxmarl:…",
    "pettingzoo": "the environments pettingzoo:…, and perla's own as PettingZoo's",
    "gymnasium": "the worlds gym:…",
    "jumanji": "the worlds jumanji:…, and its foraging for `perla bench env`",
}
"""Packages that only some commands need, and what for."""


class Finding(NamedTuple):
    """One thing looked at."""

    name: str
    text: str
    remedy: str = ""
    """What to do about it; empty where it is as it should be."""
    fatal: bool = False
    """Training cannot work like this."""


def doctor_command(argv: Sequence[str]) -> int:
    """Check the machine; status 1 if training cannot work."""
    Parser("doctor", "Check this machine and say what to do about what is missing.").parse(argv)
    fatal = False
    for finding in findings():
        mark = "x" if finding.fatal else "!" if finding.remedy else " "
        print(visible(f"{mark} {finding.name:<14} {finding.text}"))
        if finding.remedy:
            print(visible(f"{'':17}-> {finding.remedy}"))
        fatal |= finding.fatal
    print("\nnot ready: mend what is marked x" if fatal else "\nready")
    return int(fatal)


def findings() -> Iterator[Finding]:
    """Everything looked at, one after the other."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _machine,
        _jax,
        _cache,
        _here,
        _optional,
    )
    for check in checks:
        yield from check()


def _python() -> Iterator[Finding]:
    from perla import __version__

    yield Finding("perla", __version__)
    old = sys.version_info < (3, 11)
    remedy = "install Python 3.11 or newer" if old else ""
    yield Finding("python", f"{platform.python_version()} at {sys.executable}", remedy, fatal=old)


def _machine() -> Iterator[Finding]:
    from perla import machine

    yield Finding("processor", f"{machine.processor()}, {machine.cores()} cores")
    gib = machine.memory() / 2**30
    remedy = "below 2 GiB large runs fail; use fewer --num-envs and --seeds" if gib < 2 else ""
    yield Finding("memory", f"{gib:.1f} GiB", remedy)


def _jax() -> Iterator[Finding]:
    try:
        import jax
        import jax.numpy as jnp
    except Exception as error:  # Whatever keeps JAX from loading is the finding.
        yield Finding("jax", f"cannot be imported: {error}", "run `make setup` again", fatal=True)
        return
    from perla.runs import backend

    backend.prepare()
    yield Finding("jax", jax.__version__)
    try:
        devices = jax.devices()
        began = time.perf_counter()
        matrix = jnp.eye(256)
        trace = float(jax.jit(lambda x: jnp.trace(x @ x))(matrix))
    except Exception as error:
        text = " ".join(str(error).split())
        yield Finding("devices", text, "set JAX_PLATFORMS=cpu, or mend the driver", fatal=True)
        return
    took = time.perf_counter() - began
    remedy = ""
    if devices[0].platform == "cpu" and Path("/proc/driver/nvidia/version").exists():
        remedy = "this machine has an NVIDIA driver: install the extra `perla[cuda]` to use it"
    yield Finding("devices", ", ".join(map(str, devices)), remedy)
    right = trace == 256.0
    yield Finding(
        "self-test",
        f"a small program compiled and run in {took:.2f} s" if right else f"256 came as {trace}",
        "" if right else "this installation computes wrongly: run `make setup` again",
        fatal=not right,
    )


def _cache() -> Iterator[Finding]:
    from perla.runs import backend

    folder = backend.cache_folder()
    if folder is None:
        yield Finding(
            "cache",
            "off: every start compiles anew",
            "set PERLA_CACHE to a folder that can be written",
        )
        return
    size = sum(file.stat().st_size for file in folder.glob("*") if file.is_file())
    yield Finding("cache", f"{folder}, {size / 2**20:.0f} MiB")


def _here() -> Iterator[Finding]:
    here = Path.cwd()
    usable = os.access(here, os.W_OK)
    statistics = os.statvfs(here)
    gib = statistics.f_bavail * statistics.f_frsize / 2**30
    remedy = "" if usable else "choose a folder that can be written: --out DIR"
    if usable and gib < 0.5:
        remedy = "little space: choose --out on another disk"
    yield Finding("folder", f"{here}, {gib:.1f} GiB free", remedy)


def _optional() -> Iterator[Finding]:
    for package, purpose in OPTIONAL.items():
        try:
            version = importlib.metadata.version(package)
            yield Finding(package, f"{version} ({purpose})")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, f"absent ({purpose})", f"`pip install {package}` if you need it")
