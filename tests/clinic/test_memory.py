"""The memory that is left: the machine's, or less where a control group allows less."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lungkit.clinic import memory

MB = 2**20
UNLIMITED = "9223372036854771712"  # what version 1 writes where there is no limit


@pytest.fixture
def root(tmp_path):
    """A function that writes files of a made-up system and returns its root."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def group(folder: str, limit: object, taken: int, cache: int = 0, high: str = "max") -> dict[str, str]:
    """The files of a control group of version 2."""
    stat = f"anon {taken}\nfile {3 * cache}\ninactive_file {cache}\nactive_file {2 * cache}\n"
    texts = {"max": limit, "high": high, "current": taken, "stat": stat}
    return {f"sys/fs/cgroup{folder}/memory.{name}": f"{text}\n" for name, text in texts.items()}


def test_a_machine_without_limits_has_what_the_machine_has(root):
    """No control groups (macOS), and groups without a limit, change nothing."""
    machine = psutil.virtual_memory()
    for system in (root(), root(**{"proc/self/cgroup": "0::/a\n"}, **group("/a", "max", 10 * MB))):
        assert memory.total(system) == machine.total
        assert memory.left(system) == pytest.approx(machine.available, rel=0.5)


def test_the_group_of_a_service_leaves_its_limit_less_what_is_taken(root):
    """Files that are only cached do not count as taken; files in active use do."""
    files = group("/system.slice/lungkit.service", 50 * MB, 45 * MB, cache=15 * MB)
    system = root(**{"proc/self/cgroup": "0::/system.slice/lungkit.service\n"}, **files)
    assert memory.left(system) == 20 * MB
    assert memory.total(system) == 50 * MB


def test_a_group_above_may_leave_less(root):
    """Other services in the same slice take memory as well."""
    files = group("/slice/service", 50 * MB, 10 * MB) | group("/slice", 60 * MB, 57 * MB)
    assert memory.left(root(**{"proc/self/cgroup": "0::/slice/service\n"}, **files)) == 3 * MB


def test_a_group_that_is_slowed_down_counts_as_full_there(root):
    """Above memory.high the system slows every process of the group down."""
    files = group("/a", 50 * MB, 10 * MB, high=str(12 * MB))
    assert memory.left(root(**{"proc/self/cgroup": "0::/a\n"}, **files)) == 2 * MB


def test_nothing_is_left_above_the_limit(root):
    """A group can take more than its limit for a moment."""
    assert memory.left(root(**{"proc/self/cgroup": "0::/a\n"}, **group("/a", 10 * MB, 11 * MB))) == 0


def test_a_container_sees_its_own_group_as_the_whole_tree(root):
    """The path in /proc is the host's, and does not exist in the container."""
    files = group("", 40 * MB, 30 * MB)
    for path in ("/", "/docker/0123", "/../other"):
        assert memory.left(root(**{"proc/self/cgroup": f"0::{path}\n"}, **files)) == 10 * MB


def test_groups_of_version_1_are_read_as_well(root):
    """An older system has a tree for each resource, and writes a huge number where there is no limit."""
    tree = "sys/fs/cgroup/memory"
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/0123\n0::/\n",
        f"{tree}/memory.limit_in_bytes": UNLIMITED,
        f"{tree}/memory.usage_in_bytes": str(500 * MB),
        f"{tree}/docker/0123/memory.limit_in_bytes": str(30 * MB),
        f"{tree}/docker/0123/memory.usage_in_bytes": str(29 * MB),
        f"{tree}/docker/0123/memory.stat": f"inactive_file 0\ntotal_inactive_file {4 * MB}\n",
    }
    assert memory.left(root(**files)) == 5 * MB
    assert memory.total(root(**files)) == 30 * MB


def test_a_group_that_may_use_less_than_all_cores_leaves_fewer(root):
    """A container with a quota of 1.5 cores in a slice of two; and one whose quota is less than a core."""
    own, files = len(os.sched_getaffinity(0)), {"proc/self/cgroup": "0::/slice/service\n"}
    cpu = "sys/fs/cgroup/slice/cpu.max", "sys/fs/cgroup/slice/service/cpu.max"
    assert memory.cores(root(**files, **dict.fromkeys(cpu, "max 100000\n"))) == own
    assert memory.cores(root(**files, **{cpu[0]: "200000 100000\n", cpu[1]: "150000 100000\n"})) == 1
    assert memory.cores(root(**files, **{cpu[0]: "100000 50000\n", cpu[1]: "max 100000\n"})) == min(own, 2)
    assert memory.cores(root(**files, **{cpu[1]: "20000 100000\n"})) == 1


def test_a_quota_of_version_1_and_affinity_leave_fewer_cores(root, monkeypatch):
    """The system writes -1 where there is no quota."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    files = {"proc/self/cgroup": "5:cpu,cpuacct:/docker/0123\n"}
    tree = "sys/fs/cgroup/cpu"
    unlimited = {f"{tree}/cpu.cfs_quota_us": "-1\n", f"{tree}/cpu.cfs_period_us": "100000\n"}
    assert memory.cores(root(**files, **unlimited)) == 12
    quota = {f"{tree}/docker/0123/cpu.cfs_{name}_us": f"{us}\n" for name, us in (("quota", 300000), ("period", 100000))}
    assert memory.cores(root(**files, **quota)) == 3


def test_the_memory_of_processes_counts_what_they_share_once():
    """Two processes with the same program take less together than their resident sizes say."""
    command = [sys.executable, "-c", "import sys; print(1, flush=True); sys.stdin.read()"]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for one in both:
            assert one.stdout and one.stdout.readline()
        resident = sum(psutil.Process(one.pid).memory_info().rss for one in both)
        assert MB < memory.of_processes(one.pid for one in both) <= resident
    finally:
        for one in both:
            one.communicate()
    assert memory.of_processes([one.pid for one in both]) == 0  # they have ended
    assert memory.of_processes([os.getpid()]) > MB
