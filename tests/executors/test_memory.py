"""The promises about memory, on folders laid out as Linux lays out its own."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fashion_study.executors import local, memory
from fashion_study.executors.memory import OomWatch, available_memory, oom_kills

GIBIBYTE = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    """Make files with their folders."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def version_2(root: Path, limit: str = str(GIBIBYTE), kills: int = 0) -> Path:
    group = "sys/fs/cgroup/user/job"
    files = {
        "proc/self/cgroup": "0::/user/job\n",
        f"{group}/memory.max": f"{limit}\n",
        f"{group}/memory.current": f"{700 * 2**20}\n",
        f"{group}/memory.stat": f"anon 5\ninactive_file {200 * 2**20}\nactive_file 7\n",
        f"{group}/memory.events": f"low 0\nmax 9\noom 9\noom_kill {kills}\noom_group_kill 0\n",
    }
    return write(root, files)


def version_1(root: Path, kills: int = 0) -> Path:
    group = "sys/fs/cgroup/memory"
    files = {
        "proc/self/cgroup": "4:memory:/outside/the/container\n3:cpu:/\n0::/\n",
        f"{group}/memory.limit_in_bytes": f"{GIBIBYTE}\n",
        f"{group}/memory.usage_in_bytes": f"{700 * 2**20}\n",
        f"{group}/memory.stat": f"inactive_file 1\ntotal_inactive_file {200 * 2**20}\n",
        f"{group}/memory.oom_control": f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n",
    }
    return write(root, files)


@pytest.mark.parametrize("lay_out", [version_2, version_1])
def test_a_cgroup_s_limit_leaves_less_than_the_machine(
    lay_out: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path)
    assert available_memory(tmp_path) == (1024 - 700 + 200) * 2**20
    monkeypatch.setattr(local, "available_memory", lambda: available_memory(tmp_path))
    monkeypatch.setattr(local, "cpu_count", lambda: 64)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.default_workers() == 1


def test_the_limit_of_a_cgroup_further_up_holds_too(tmp_path: Path) -> None:
    version_2(tmp_path, limit="max")
    upper = "sys/fs/cgroup/user"
    write(tmp_path, {f"{upper}/memory.max": "3072\n", f"{upper}/memory.current": "1024\n"})
    assert available_memory(tmp_path) == 2048


def test_without_a_limit_it_is_what_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    assert available_memory(tmp_path) == machine.available
    assert available_memory(version_2(tmp_path, limit="max")) == machine.available


def test_oom_kills_are_counted_by_cgroup_else_by_machine(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) == 0
    assert oom_kills(write(tmp_path, {"proc/vmstat": "pgfault 3\noom_kill 7\n"})) == 7
    assert oom_kills(version_2(tmp_path, kills=2)) == 2
    assert oom_kills(version_1(tmp_path / "other", kills=3)) == 3


def test_each_kill_for_memory_explains_one_death() -> None:
    kills = [4]
    watch = OomWatch(lambda: kills[0])
    assert not watch.explains_a_kill()
    kills[0] = 6
    assert [watch.explains_a_kill() for _ in range(3)] == [True, True, False]


def test_a_kill_for_memory_of_some_time_ago_explains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "RECENT_SECONDS", 0.0)
    kills = [0]
    watch = OomWatch(lambda: kills[0])
    kills[0] = 1
    watch.look()
    watch.look()
    assert not watch.explains_a_kill()
