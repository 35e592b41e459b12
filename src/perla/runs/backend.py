"""JAX as perla wants it: every core a device, and what was compiled once is compiled for good."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from perla.machine import cores

SCHEDULER = "xla_cpu_enable_concurrency_optimized_scheduler"
"""XLA's scheduler that, in jaxlib 0.10, can wait for itself for ever (seen with vectorised seeds on
a CPU); these programs are no slower without it."""


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
    run side by side; a process that has begun to compute keeps the devices that it has. A scheduler
    that can hang is switched off, for the versions of jaxlib that were seen to. The
    persistent compilation cache is switched on, unless the user has configured one
    (`JAX_COMPILATION_CACHE_DIR`).
    """
    import jax
    import jaxlib

    flags = os.environ.get("XLA_FLAGS", "")
    if jaxlib.__version__.startswith("0.10.") and SCHEDULER not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{SCHEDULER}=false"
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores())
    path = cache_folder()
    if path is None or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
