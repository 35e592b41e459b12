"""`perla doctor`: check this machine, and suggest remedies."""

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
from perla.errors import UserError, visible
from perla.plugins import install_command

OPTIONAL = {
    "lbforaging": "the original foraging, for `make test-all`",
    "gymnasium-robotics": "multi-agent MuJoCo, with mujoco",
    "jaxmarl": "the environments jaxmarl:…",
    "pettingzoo": "the environments pettingzoo:…, and the export to PettingZoo",
    "gymnasium": "the environments gym:…",
    "jumanji": "the environments jumanji:…, and its foraging for `perla bench env`",
    "ray": "suites on Ray",
    "submitit": "suites on SLURM",
    "optuna": "`perla tune`",
    "wandb": "the logger wandb",
    "mlflow-skinny": "the logger mlflow",
}
"""Optional packages and their uses."""


class Finding(NamedTuple):
    """The result of one check."""

    name: str
    text: str
    remedy: str = ""
    """The remedy; empty if there is nothing to mend."""
    fatal: bool = False
    """True if training cannot work."""


def doctor_command(argv: Sequence[str]) -> int:
    """Check the machine; exit status 1 if training cannot work."""
    Parser("doctor", "Check this machine, and suggest remedies.").parse(argv)
    fatal = False
    for finding in findings():
        mark = "x" if finding.fatal else "!" if finding.remedy else " "
        print(visible(f"{mark} {finding.name:<14} {finding.text}"))
        if finding.remedy:
            print(visible(f"{'':17}-> {finding.remedy}"))
        fatal |= finding.fatal
    print("\nnot ready: fix the lines marked x" if fatal else "\nready")
    return int(fatal)


def findings() -> Iterator[Finding]:
    """The results of all checks, in order."""
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
    except Exception as error:  # Any failure to load JAX is the finding.
        yield Finding("jax", f"cannot be imported: {error}", "run `make setup` again", fatal=True)
        return
    from perla.runs import backend

    try:
        backend.prepare()
    except UserError as error:
        yield Finding("jax", str(error), "see the cause", fatal=True)
        return
    yield Finding("jax", jax.__version__)
    yield from _devices()


def _devices() -> Iterator[Finding]:
    import jax
    import jax.numpy as jnp

    try:
        devices = jax.devices()
        start = time.perf_counter()
        trace = float(jax.jit(lambda x: jnp.trace(x @ x))(jnp.eye(256)))
    except Exception as error:
        text = " ".join(str(error).split())
        yield Finding("devices", text, "set JAX_PLATFORMS=cpu, or repair the driver", fatal=True)
        return
    seconds = time.perf_counter() - start
    remedy = ""
    if devices[0].platform == "cpu" and Path("/proc/driver/nvidia/version").exists():
        remedy = f"this machine has an NVIDIA driver; `{install_command('cuda')}` to use it"
    yield Finding("devices", ", ".join(map(str, devices)), remedy)
    right = trace == 256.0
    yield Finding(
        "self-test",
        f"a program compiled and ran in {seconds:.2f} s" if right else f"expected 256, got {trace}",
        "" if right else "this installation computes wrong results: run `make setup` again",
        fatal=not right,
    )


def _cache() -> Iterator[Finding]:
    from perla.runs import backend

    folder = backend.cache_folder()
    if folder is None:
        yield Finding(
            "cache",
            "off: every start compiles again",
            "set PERLA_CACHE to a writable folder",
        )
        return
    size = sum(file.stat().st_size for file in folder.glob("*") if file.is_file())
    yield Finding("cache", f"{folder}, {size / 2**20:.0f} MiB")


def _here() -> Iterator[Finding]:
    here = Path.cwd()
    usable = os.access(here, os.W_OK)
    statistics = os.statvfs(here)
    gib = statistics.f_bavail * statistics.f_frsize / 2**30
    remedy = "" if usable else "choose a writable folder: --out DIR"
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
