"""Configuration of JAX: the modes that perla runs under, and a persistent compilation cache."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from perla.errors import UserError

SCHEDULER = "xla_cpu_enable_concurrency_optimized_scheduler"
"""A scheduler of XLA that can deadlock in jaxlib 0.10 (seen with vectorised seeds on a CPU). These
programs are as fast without it."""


CPU_DEVICES = "jax_num_cpu_devices"
"""The setting of JAX that says as how many devices a CPU counts."""

MODES: dict[str, tuple[object, str]] = {
    "jax_enable_x64": (True, "perla computes with 32-bit numbers"),
    "jax_debug_nans": (True, "NaN marks a metric without a value; perla finds and names others"),
    "jax_debug_infs": (True, "−∞ marks a best return before any; perla finds and names others"),
    "jax_numpy_dtype_promotion": ("strict", "perla relies on the promotion of types"),
}
"""Settings of JAX under which perla does not run: the value, and the reason."""


def cache_folder() -> Path | None:
    """The folder of the compilation cache: `$PERLA_CACHE`, by default a folder of the user's cache.

    None if `PERLA_CACHE=off`, if the user has no home, or if the folder cannot be written.
    """
    setting = os.environ.get("PERLA_CACHE")
    if setting == "off":
        return None
    try:
        if setting:
            path = Path(setting).expanduser()
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            path = base / "perla" / "xla"
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # Path.home() in a container without a home or a user name.
        return None
    return path if os.access(path, os.W_OK) else None


def check() -> None:
    """Raise `UserError` if JAX is set to a mode, or to a device, with which perla cannot run."""
    import jax

    for name, (value, reason) in MODES.items():
        if getattr(jax.config, name) == value:
            raise UserError(f"{name.upper()}={value}: {reason}; unset it")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts where a known driver is missing.
        platforms = os.environ.get("JAX_PLATFORMS", "")
        cause = " ".join(str(error).split()) or "JAX finds no driver"
        raise UserError(f"JAX_PLATFORMS={platforms}: no such device here ({cause})") from None


def prepare(cpu_devices: int = 1) -> None:
    """Configure JAX, and `check` it. To take full effect this must precede JAX's first computation.

    A CPU counts as at least `cpu_devices` devices, unless JAX has started before. A scheduler that
    can deadlock is switched off for the affected versions of jaxlib. The persistent compilation
    cache is switched on unless the user has configured one (`JAX_COMPILATION_CACHE_DIR`).
    """
    import jax
    import jaxlib

    flags = os.environ.get("XLA_FLAGS", "")
    if jaxlib.__version__.startswith("0.10.") and SCHEDULER not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{SCHEDULER}=false"
    known = getattr(jax.config, CPU_DEVICES)
    if cpu_devices > max(1, known) and "host_platform_device_count" not in flags:
        with suppress(RuntimeError):  # JAX has started before; the trainer says so.
            jax.config.update(CPU_DEVICES, cpu_devices)
    check()
    path = cache_folder()
    if path is not None and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        use_cache(path)


def use_cache(path: Path) -> None:
    """Keep every program that is compiled in the folder `path`, and read it from there."""
    import jax

    from perla.runs import compile_cache

    compile_cache.install()
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
