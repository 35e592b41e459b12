"""Facts of this machine: hardware, processor cores, GPUs, and versions of the libraries."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a run's numbers."""
    result = {"python": platform.python_version()}
    for package in ("perla", "jax", "jaxlib", "equinox", "optax", "numpy"):
        try:
            result[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            from perla import __version__

            result[package] = __version__ if package == "perla" else "absent"
    return result


def hardware() -> dict[str, Any]:
    """The platform, processor, cores and memory of this machine."""
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "memory_gib": round(memory() / 2**30, 1),
    }


def cores() -> int:
    """The number of processor cores to use: `$PERLA_CORES`, by default all of this process."""
    setting = os.environ.get("PERLA_CORES", "")
    if setting.isdecimal() and int(setting) > 0:
        return int(setting)
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
    """Bytes of memory that this process may use: the machine's, or the limit of its container."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_container_limits()])


def _container_limits(
    root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """The memory limits of the control groups that this process is in (Linux, versions 1 and 2)."""
    try:
        rows = [row.split(":", 2) for row in groups.read_text().splitlines()]
    except (OSError, UnicodeDecodeError):
        return []
    limits = []
    for _, controllers, group in filter(lambda row: len(row) == 3, rows):
        if controllers == "":
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = base / group.lstrip("/")
        for path in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # "max" is no limit
                limits.append(int((path / name).read_text()))
            if path == base:
                break
    return limits


def shares(count: int) -> list[list[int]]:
    """The processor cores to use, divided into `count` shares. If there are fewer cores than
    shares, several shares have the same core."""
    allowed = (
        sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(cores())
    )
    used = list(allowed)[: cores()]
    return [used[share::count] or [used[share % len(used)]] for share in range(count)]


def accelerators() -> tuple[str, ...]:
    """The NVIDIA GPUs that the installed JAX can use, by their names in `CUDA_VISIBLE_DEVICES`."""
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip() not in ("", "-1"))
    numbers = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia*"))
    return tuple(sorted((number for number in numbers if number.isdecimal()), key=int))
