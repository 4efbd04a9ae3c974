"""The memory of this machine: how much is left for workers, and whether the kernel has just killed for it."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

# A kill is noticed within a tick or two, but not before the kernel has removed a large process.
RECENT_SECONDS = 10.0
# What stands in the kernel's files.
WHOLE, OOM_KILLS = r"^(\d+)$", r"^oom_kill (\d+)$"


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process and its children may still take: what the machine and its cgroups leave.

    `root` is the folder with /proc and /sys.
    """
    left = (_left(folder) for folder in _cgroups(root))
    return min([psutil.virtual_memory().available, *(room for room in left if room is not None)])


def oom_kills(root: Path = Path("/")) -> int:
    """Count the processes that the kernel's out-of-memory killer has ended, as far as this process can see."""
    files = [folder / name for folder in _cgroups(root) for name in ("memory.events", "memory.oom_control")]
    counts = [count for path in files if (count := _number(OOM_KILLS, path)) is not None]
    # The machine's count is that of other containers too: only where no cgroup keeps its own.
    return max(counts) if counts else _number(OOM_KILLS, root / "proc/vmstat") or 0


class OomWatch:
    """Counter of the kernel's kills for memory, which tells them from other kills."""

    def __init__(self, count: Callable[[], int] = oom_kills) -> None:
        self._count = count
        self._earlier = self._recent = count()
        self._looked = time.monotonic()

    def look(self) -> None:
        """Forget earlier kills every few seconds: they explain no later death."""
        if time.monotonic() - self._looked >= RECENT_SECONDS:
            self._earlier, self._recent = self._recent, self._count()
            self._looked = time.monotonic()

    def explains_a_kill(self) -> bool:
        """Return whether the kernel has just killed for memory; each such kill explains one death."""
        if self._count() <= self._earlier:
            return False
        self._earlier += 1
        self._recent = max(self._recent, self._earlier)
        return True


def _cgroups(root: Path) -> Iterator[Path]:
    """Yield this process's memory cgroup and those above it, of version 2 and of version 1."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "memory" in controllers.split(","):
                top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
                folder = top / path.lstrip("/")
                # A container sees its own cgroup at the top, whatever its path outside.
                yield from (each for each in (folder, *folder.parents) if each.is_relative_to(top) and each.is_dir())


def _left(cgroup: Path) -> int | None:
    """Return the bytes that a cgroup's limit leaves, None without a limit. Files in the cache make room."""
    limit = _number(WHOLE, cgroup / "memory.max", cgroup / "memory.limit_in_bytes")
    used = _number(WHOLE, cgroup / "memory.current", cgroup / "memory.usage_in_bytes")
    if limit is None or used is None:
        return None
    stat = cgroup / "memory.stat"
    cached = _number(r"^total_inactive_file (\d+)$", stat) or _number(r"^inactive_file (\d+)$", stat)
    return max(0, limit - used + (cached or 0))


def _number(pattern: str, *files: Path) -> int | None:
    """Return the number that the first of these files has; a limit can also be the word `max`."""
    for file in files:
        with suppress(OSError):
            if match := re.search(pattern, file.read_text(), flags=re.MULTILINE):
                return int(match[1])
    return None
