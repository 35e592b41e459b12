"""The persistent compilation cache: what was compiled once is compiled for good."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path | None:
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


def enable() -> None:
    """Switch the cache on; must come before the first compilation to be of full use.

    A cache that the user has configured (`JAX_COMPILATION_CACHE_DIR`) is left alone.
    """
    import jax

    path = folder()
    if path is None or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
