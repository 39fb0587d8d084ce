# SPDX-License-Identifier: Apache-2.0
"""Files that lie where fsspec knows by a URL (s3://, gs://, memory://)."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from lvqcodec import files
from lvqcodec.batch.store import STATE, Content, Entry, check_name
from lvqcodec.errors import UsageError
from lvqcodec.metrics import extra

_FLUSH_SECONDS = 5.0  # an object store cannot append: lines go there in bundles


class RemoteStore:
    """What fsspec knows by a URL. An object is put whole; two batches at once are not noticed."""

    def __init__(self, url: str) -> None:
        fsspec = extra("fsspec", needed_by=f"{url.partition('://')[0]}://", name="remote")
        self._files: Any
        try:
            self._files, path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"cannot open {url}: {error}") from error
        self._root = path.rstrip("/")
        self.location = url.rstrip("/")
        self._held: dict[str, list[bytes]] = {}
        self._flushed = time.monotonic()

    def entries(self) -> Iterator[Entry]:
        """See `Store`."""
        for path in sorted(self._files.find(self._root)):
            name = path[len(self._root) :].lstrip("/")
            if name and STATE not in name.split("/"):
                yield Entry(name)

    def read(self, name: str) -> Content:
        """See `Store`; an object has no status."""
        return Content(self._files.cat_file(f"{self._root}/{name}"), None)

    def exists(self, name: str) -> bool:
        """See `Store`."""
        check_name(name)
        return bool(self._files.exists(f"{self._root}/{name}"))

    def digest(self, name: str) -> str | None:
        """See `Store`."""
        try:
            return hashlib.sha256(self.read(name).data).hexdigest()
        except OSError:
            return None

    def write(
        self,
        name: str,
        data: bytes,
        *,
        replace: bool = True,
        like: os.stat_result | None = None,
        preserve: bool = False,
    ) -> None:
        """See `Store`; what appears in the moment of writing is replaced."""
        if not replace and self.exists(name):
            raise files.FileInTheWay(f"{name} exists by now: it is left as it is")
        check_name(name)
        path = f"{self._root}/{name}"
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(path, data)

    def log(self, name: str) -> bytes:
        """See `Store`: the bundles in the order they were put."""
        try:
            found = self._files.find(f"{self._root}/{STATE}/{name}")
        except FileNotFoundError:
            return b""
        return b"".join(self._files.cat_file(path) for path in sorted(found))

    def append(self, name: str, line: bytes) -> None:
        """See `Store`; a line waits for those that come within seconds."""
        self._held.setdefault(name, []).append(line)
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """See `Store`: an object for each log."""
        for name, lines in self._held.items():
            bundle = f"{time.time_ns():020d}-{secrets.token_hex(4)}.jsonl"
            self.write(f"{STATE}/{name}/{bundle}", b"".join(lines))
        self._held.clear()
        self._flushed = time.monotonic()

    def claim(self, names: Iterable[str]) -> AbstractContextManager[object]:
        """See `Store`; nothing keeps another batch off, and nothing partial is ever left."""
        probe = f"{STATE}/probe-{secrets.token_hex(4)}"
        try:
            self.write(probe, b"")
        except OSError as error:
            raise UsageError(f"cannot write to {self.location}: {files.reason(error)}") from error
        with suppress(OSError):
            self._files.rm_file(f"{self._root}/{probe}")
        return nullcontext()
