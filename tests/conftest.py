"""Every test runs with shapes checked and silent broadcasting forbidden."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

# Most programs here run for milliseconds: what takes time is to compile them well. The variable is
# for the processes that tests start, too.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
# XLA's former emitters compile twice as fast, and their programs are a tenth slower. Later releases
# have none, and end the process where they are named.
if version("jaxlib").startswith("0.10."):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jaxtyping.install_import_hook("perla", "beartype.beartype")

from perla.runs import backend  # noqa: E402 (after the hook that checks shapes)

# A program is compiled once for all tests, workers and processes, and for later runs of the tests.
CACHE = Path(__file__).parents[1] / ".cache" / "xla"
MOST_BYTES = 2**30
MOST_RESIDENT_BYTES = 2.5e9
os.environ["PERLA_CACHE"] = str(CACHE)
CACHE.mkdir(parents=True, exist_ok=True)
backend.use_cache(CACHE)


def pytest_sessionstart(session):
    """Empty a cache that has grown too large."""
    if hasattr(session.config, "workerinput"):
        return
    files = [file for file in CACHE.iterdir() if file.is_file()]
    if sum(file.stat().st_size for file in files) > MOST_BYTES:
        for file in files:
            file.unlink(missing_ok=True)


def pytest_itemcollected(item):
    """Keep the tests of a file, which share fixtures and programs, on one worker."""
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(autouse=True, scope="module")
def free_programs():
    """Free the programs of a file's tests where they begin to fill the memory."""
    yield
    if resident_bytes() > MOST_RESIDENT_BYTES:
        jax.clear_caches()
        gc.collect()


def resident_bytes() -> float:
    """The memory of this process; infinite where it is not known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return float("inf")
