"""The machine that a run is computed on, and the versions of the libraries."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Versions of everything that can change a run's numbers."""
    found = {"python": platform.python_version()}
    for package in ("perla", "jax", "jaxlib", "equinox", "optax", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            from perla import __version__

            found[package] = __version__ if package == "perla" else "absent"
    return found


def hardware() -> dict[str, Any]:
    """What the run is computed on."""
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "memory_gib": round(memory() / 2**30, 1),
    }


def cores() -> int:
    """Processor cores that this process may use: `$PERLA_CORES`, or else all that it can."""
    chosen = os.environ.get("PERLA_CORES", "")
    if chosen.isdecimal() and int(chosen) > 0:
        return int(chosen)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [row.partition(":")[2].strip() for row in text.splitlines() if "model name" in row]
    return names[0] if names else platform.machine()


def memory() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def shares(count: int) -> list[list[int]]:
    """The processor cores that this process may use, dealt out in `count` parts; where there are
    fewer, several parts have the same one."""
    own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(cores())
    mine = list(own)[: cores()]
    return [mine[part::count] or [mine[part % len(mine)]] for part in range(count)]


def accelerators() -> tuple[str, ...]:
    """The NVIDIA GPUs that JAX, as it is installed here, can use, by their names in
    `CUDA_VISIBLE_DEVICES`."""
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        return ()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1"))
    numbers = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia*"))
    return tuple(sorted((number for number in numbers if number.isdecimal()), key=int))
