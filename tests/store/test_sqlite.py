"""The promises about file systems: WAL only where its processes share memory."""

from pathlib import Path

import pytest

from fashion_study.errors import ExitCode, StoreError
from fashion_study.store import store as store_module
from fashion_study.store.sqlite import Mount, filesystem_of, mounts, refuse_network
from fashion_study.store.store import open_store

TABLE: list[Mount] = [
    ("/", "ext4"),
    ("/users", "nfs4"),
    ("/users/me/scratch", "xfs"),
    ("/usersland", "btrfs"),
    ("/mnt/far", "ext4"),
    ("/mnt/far", "cifs"),
]


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/data/store", ("/", "ext4")),
        ("/users/me/store", ("/users", "nfs4")),
        ("/users", ("/users", "nfs4")),
        ("/users/me/scratch/a/b", ("/users/me/scratch", "xfs")),
        ("/usersland/store", ("/usersland", "btrfs")),
        ("/mnt/far/store", ("/mnt/far", "cifs")),
    ],
)
def test_a_folder_is_on_the_nearest_mount_above_it(folder: str, expected: Mount) -> None:
    assert filesystem_of(Path(folder), TABLE) == expected


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "ceph", "fuse.sshfs", "fuse.rclone"]
)
def test_a_network_file_system_is_refused(kind: str) -> None:
    with pytest.raises(StoreError) as caught:
        refuse_network(Path("/far/store"), [("/", "ext4"), ("/far", kind)])
    for word in (kind, "/far", "write-ahead log", "--store", "MLFLOW_TRACKING_URI"):
        assert word in str(caught.value)
    assert caught.value.exit_code is ExitCode.STORE


@pytest.mark.parametrize(
    "kind",
    # 9p and virtiofs bring a host's files into WSL and containers: one machine opens the store.
    ["ext4", "xfs", "btrfs", "zfs", "apfs", "tmpfs", "overlay", "9p", "virtiofs", "fuseblk", "fuse.lxcfs", ""],
)
def test_any_other_file_system_is_fine(kind: str) -> None:
    refuse_network(Path("/near/store"), [("/", "nfs4"), ("/near", kind)])


def test_without_a_table_of_mounts_no_folder_is_refused() -> None:
    refuse_network(Path("/near/store"), [])


def test_this_machine_s_mounts_include_the_tests_folder(tmp_path: Path) -> None:
    assert filesystem_of(tmp_path, mounts()) is not None


def test_a_refused_store_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "mounts", lambda: [(str(tmp_path), "nfs4")])
    with pytest.raises(StoreError, match="nfs4"):
        open_store(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []
