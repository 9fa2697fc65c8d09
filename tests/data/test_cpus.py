"""The number of CPUs that a process may use."""

import os

import pytest

from taf_fast.data import cpus, usable_cpus
from taf_fast.data.cpus import quotas

V1 = "12:pids:/a\n4:cpu,cpuacct:/a/b\n1:name=systemd:/x\n0::/unified"


@pytest.fixture
def groups(tmp_path):
    """Writes files below the place where cgroups are mounted, and the memberships; its quotas."""

    def find(membership: str, **files: str) -> list[float]:
        (tmp_path / "cgroup").write_text(membership + "\n")
        for name, text in files.items():
            file = tmp_path / "sys" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        return list(quotas(tmp_path / "cgroup", tmp_path / "sys"))

    return find


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, [2.0]),
        ("0::/", {"cpu.max": "max 100000"}, []),
        ("0::/", {"cpu.max": ""}, []),
        ("0::/", {}, []),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, [1.5]),
        ("0::/a:b", {"a:b/cpu.max": "50000 100000"}, [0.5]),
        # The path is that of the host, and the group is mounted as root.
        ("0::/docker/5c4f", {"cpu.max": "300000 100000"}, [3.0]),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "400000", "cpu/a/b/cpu.cfs_period_us": "100000"}, [4.0]),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "20000"}, [2.5]),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "-1", "cpu/a/b/cpu.cfs_period_us": "100000"}, []),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "400000", "cpu/a/b/cpu.cfs_period_us": "0"}, []),
        (V1, {"a/b/cpu.max": "100000 100000"}, []),
        (V1, {"unified/cpu.max": "100000 100000"}, [1.0]),
    ],
)
def test_quotas(groups, membership, files, expected):
    assert groups(membership, **files) == expected


@pytest.mark.parametrize(
    ("affinity", "quota", "ranks", "expected"),
    [
        (16, None, None, 16),
        (16, "1250000 100000", None, 12),
        (4, "1250000 100000", None, 4),
        (16, "50000 100000", None, 1),
        (16, None, "4", 4),
        (16, "1250000 100000", "5", 2),
        (2, None, "8", 1),
        (8, None, "x", 8),
    ],
)
def test_affinity_quota_and_ranks_share_the_cpus(
    monkeypatch, groups, tmp_path, affinity, quota, ranks, expected
):
    groups("0::/", **({} if quota is None else {"cpu.max": quota}))
    monkeypatch.setattr(cpus, "_MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(cpus, "_GROUPS", tmp_path / "sys")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(affinity)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert usable_cpus() == expected


def test_a_system_without_cgroups(tmp_path):
    assert list(quotas(tmp_path / "nothing", tmp_path)) == []
