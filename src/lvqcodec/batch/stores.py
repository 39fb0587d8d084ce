# SPDX-License-Identifier: Apache-2.0
"""Which store a path or URL means, and where one lies in another."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from lvqcodec.batch.local_store import LocalStore
from lvqcodec.batch.remote_store import RemoteStore
from lvqcodec.batch.store import Store


def open_store(location: str) -> Store:
    """Return the store of a path or URL; UsageError where fsspec is needed and missing."""
    if "://" not in location:
        return LocalStore(location)
    if location.startswith("file://"):
        return LocalStore(url2pathname(urlsplit(location).path))
    return RemoteStore(location)


def relative(inner: Store, outer: Store) -> str | None:
    """Return the name that `inner` has in `outer`, "" if they are one, None if it is elsewhere."""
    if type(inner) is not type(outer):
        return None
    if isinstance(inner, LocalStore):
        try:
            path = os.path.relpath(os.path.realpath(inner.root), os.path.realpath(outer.location))
        except ValueError:  # another drive
            return None
        path = Path(path).as_posix()
        return "" if path == "." else None if path.split("/")[0] == ".." else path
    if inner.location == outer.location:
        return ""
    prefix = outer.location + "/"
    return inner.location[len(prefix) :] if inner.location.startswith(prefix) else None
