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
    "lbforaging": (None, "the original foraging, for `make test-all`"),
    "gymnasium-robotics": ("mujoco", "the environments mamujoco:…"),
    "jaxmarl": ("jaxmarl", "the environments jaxmarl:…"),
    "pettingzoo": ("pettingzoo", "the environments pettingzoo:…, and the export to PettingZoo"),
    "gymnasium": ("gym", "the environments gym:…"),
    "jumanji": ("jumanji", "the environments jumanji:…, and its foraging for `perla bench env`"),
    "ray": ("ray", "suites on Ray"),
    "submitit": ("slurm", "suites on SLURM"),
    "optuna": ("tune", "`perla tune`"),
    "wandb": ("wandb", "the logger wandb"),
    "mlflow-skinny": ("mlflow", "the logger mlflow"),
    "pandas": ("notebook", "data frames in Python"),
    "jax2onnx": ("export", "`perla export --format onnx`"),
}
"""Optional packages: the extra that installs each, and its use."""


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
    try:
        import perla.runs.execute  # noqa: F401 (what training imports)
    except Exception as error:
        text = " ".join(str(error).split())
        yield Finding("perla", f"cannot be imported: {text}", "run `make setup` again", fatal=True)
        return
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
    for package, (extra, purpose) in OPTIONAL.items():
        try:
            version = importlib.metadata.version(package)
            yield Finding(package, f"{version} ({purpose})")
        except importlib.metadata.PackageNotFoundError:
            command = install_command(extra) if extra else f"pip install {package}"
            yield Finding(package, f"absent ({purpose})", f"`{command}` if you need it")
