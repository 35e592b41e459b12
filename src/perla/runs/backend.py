"""JAX as perla wants it: every core a device, and what was compiled once is compiled for good."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from perla.runs.machine import cores


def cache_folder() -> Path | None:
    """Where compiled programs are kept: `$PERLA_CACHE`, or else a folder of the user's cache.

    None where `PERLA_CACHE=off`, or where the folder cannot be written.
    """
    chosen = os.environ.get("PERLA_CACHE")
    if chosen == "off":
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(chosen).expanduser() if chosen else base / "perla" / "xla"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return path if os.access(path, os.W_OK) else None


def prepare() -> None:
    """Configure JAX; to be of full use this must come before its first computation.

    On a CPU each core becomes a device, so that seeds, which are computations of their own there,
    run side by side; a process that has begun to compute keeps the devices that it has. The
    persistent compilation cache is switched on, unless the user has configured one
    (`JAX_COMPILATION_CACHE_DIR`).
    """
    import jax

    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores())
    path = cache_folder()
    if path is None or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
