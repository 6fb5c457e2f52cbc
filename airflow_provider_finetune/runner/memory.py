"""The memory that is left to this process, by the kernel's word and by that of the control groups."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def available(root: Path = Path("/")) -> int | None:
    """Return the memory that this process can still get, ``None`` where the system does not say.

    What the kernel counts as available (``MemAvailable``), and no more than each control group above us has left:
    limit less use, less the cached files that the kernel gives up first, as a kubelet counts it.

    :param root: of the file system, for tests.
    """
    rooms = [_number(root / "proc/meminfo", "MemAvailable:"), *_rooms_of_groups(root)]
    return min((room for room in rooms if room is not None), default=None)


def _rooms_of_groups(root: Path) -> Iterable[int | None]:
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounted, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            mounted = root / "sys/fs/cgroup/memory"
        else:
            continue
        below = mounted / path.lstrip("/")
        # In a container the path may be that of the host, of which only the end of the way up is there.
        for group in (below, *below.parents):
            if group.is_relative_to(mounted):
                yield _room(group, *names)


def _room(group: Path, limit: str, used: str, cached: str) -> int | None:
    most, taken = _number(group / limit), _number(group / used)
    if most is None or taken is None:
        return None
    return max(0, most - taken + (_number(group / "memory.stat", cached) or 0))


def _number(file: Path, name: str | None = None) -> int | None:
    """Read a number, in a table the one behind ``name``, in bytes; ``None`` where there is none ("max")."""
    try:
        words = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
        values = next(line[1:] for line in words if line[0] == name) if name else words[0]
        return int(values[0]) * (1024 if values[1:] == ["kB"] else 1)
    except (OSError, ValueError, LookupError, StopIteration):
        return None
