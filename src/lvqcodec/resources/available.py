# SPDX-License-Identifier: Apache-2.0
"""How much memory there is for this process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

SHARE = 0.5
"""Of the memory that is available, what coding may take unless told otherwise."""


def available() -> int | None:
    """Bytes of memory that this process may still take, None where that cannot be told.

    Of the machine, and of the control groups that it is in, as containers and batch systems are.
    """
    there = [_machine(), *_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]
    return min((size for size in there if size is not None), default=None)


def _machine() -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
        if found:
            return 1024 * int(found[1])
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None


_GROUP_FILES = {
    "": (Path(), "memory.max", "memory.current", "inactive_file"),
    "memory": (
        Path("memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}
"""By controller, "" in version 2: folder, files of limit and use, and which part may be dropped."""


def _groups(membership: Path, mount: Path) -> Iterator[int]:
    """What is left of each limit of the control groups that `membership` lists, innermost first."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controller, _, name = rest.partition(":")
        if controller not in _GROUP_FILES:
            continue
        folder, limit_file, use_file, cache = _GROUP_FILES[controller]
        group = Path(name.lstrip("/"))
        # seen from within a container the innermost ones may not be there
        for inner in (group, *group.parents):
            place = mount / folder / inner
            try:
                limit, use = (int((place / file).read_text()) for file in (limit_file, use_file))
                statistics = (place / "memory.stat").read_text()
            except (OSError, ValueError):  # no such group, or "max"
                continue
            found = re.search(rf"^{cache} (\d+)$", statistics, re.M)
            yield max(limit - use + (int(found[1]) if found else 0), 0)


def allowance() -> int | None:
    """SHARE of the bytes that are available, None where that cannot be told."""
    there = available()
    return None if there is None else int(SHARE * there)
