"""How many CPUs this process may use."""

import os
from collections.abc import Iterator
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """The CPUs of this process's affinity, at most the quota of its cgroup and of those above it, shared
    among the processes that torchrun started on this machine; at least 1."""
    cpus = min([len(os.sched_getaffinity(0)), *quotas(_MEMBERSHIP, _GROUPS)])
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(cpus) // max(1, int(ranks) if ranks.isdecimal() else 1))


def quotas(membership: Path, groups: Path) -> Iterator[float]:
    """The limits, in CPUs, of the cgroups (version 1 and 2) that ``membership`` names, a file such as
    /proc/self/cgroup, and of all that contain them; ``groups`` is where cgroups are mounted."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        place = Path(path)
        # In a container the path may be that of the host, of which only the last cgroup is mounted, as root.
        for group in (place, *place.parents):
            if not controllers:
                yield from _quota(groups / group.relative_to("/"), "cpu.max")
            elif "cpu" in controllers.split(","):
                for mounted in {"cpu", controllers}:
                    folder = groups / mounted / group.relative_to("/")
                    yield from _quota(folder, "cpu.cfs_quota_us", "cpu.cfs_period_us")


def _quota(group: Path, *names: str) -> Iterator[float]:
    """The limit of one cgroup, if it has one: microseconds of CPU time in each period of so many."""
    try:
        quota, period = " ".join((group / name).read_text() for name in names).split()
        if quota != "max" and int(quota) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return
