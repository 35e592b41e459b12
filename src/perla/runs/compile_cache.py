"""JAX's persistent compilation cache, with entries that are whole."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from pathlib import Path

from jax._src import compilation_cache
from jax._src.compilation_cache_interface import CacheInterface

from perla.errors import UserError
from perla.files import is_temporary, write_atomic

ABANDONED_SECONDS = 3600.0
"""The age from which a half-written entry is one of a process that was killed."""
DIGEST_BYTES = hashlib.sha256().digest_size


class CompileCache(CacheInterface):
    """Entries in a folder, each a file with its value and the SHA-256 of the value.

    JAX's own cache writes in place: a process that is killed, or a disk that is full, leaves half
    an entry, over which every later process stumbles. Here an entry is written whole or not at all,
    and removed if it is damaged.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        with suppress(OSError):
            self._path.mkdir(parents=True, exist_ok=True)
            for file in filter(is_temporary, self._path.iterdir()):
                if time.time() - file.lstat().st_mtime > ABANDONED_SECONDS:
                    file.unlink()

    def get(self, key: str) -> bytes | None:
        """The value of `key`; None if there is no whole entry."""
        file = self._file(key)
        try:
            data = file.read_bytes()
        except OSError:
            return None
        value, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if hashlib.sha256(value).digest() == digest:
            return value
        with suppress(OSError):
            file.unlink()
        return None

    def put(self, key: str, value: bytes) -> None:
        """Add an entry. If the operating system refuses (a full disk), there is none."""
        with suppress(UserError):
            data = value + hashlib.sha256(value).digest()
            write_atomic(self._file(key), data, durable=False)

    def _file(self, key: str) -> Path:
        return self._path / f"{key}-entry"


def install() -> None:
    """Make JAX use a `CompileCache` for its folder. JAX has no public function for this."""
    compilation_cache.get_file_cache = lambda path: (CompileCache(path), path)
