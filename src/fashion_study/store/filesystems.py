"""File systems on which a database in WAL mode is not safe."""

from collections.abc import Iterable
from pathlib import Path

import psutil

from fashion_study.errors import StoreError

# SQLite's WAL shares memory between its processes, which file systems of several machines do not; some ignore locks
# as well. Not listed are those that only bring a host's files into its guest (9p of WSL and containers, virtiofs,
# vboxsf): one machine opens the store there, and where shared memory is missing SQLite says so itself.
NETWORK = {
    *("nfs", "nfs3", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "smbnetfs", "afpfs", "afs", "ncpfs", "coda"),
    *(
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "ceph-fuse",
        "glusterfs",
        "orangefs",
        "pvfs2",
        "lizardfs",
        "moosefs",
        "wekafs",
    ),
    *("sshfs", "davfs", "davfs2", "webdav", "s3fs", "s3ql", "goofys", "mount-s3", "mountpoint-s3", "gcsfuse"),
    *("blobfuse", "blobfuse2", "rclone", "juicefs"),
}

Mount = tuple[str, str]


def mounts() -> list[Mount]:
    """Return where file systems are mounted and of what type they are, in the order in which they were."""
    try:
        return [(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]
    except (OSError, psutil.Error):  # A system without such a table: nothing is known against the folder.
        return []


def filesystem_of(folder: Path, table: Iterable[Mount]) -> Mount | None:
    """Return the file system that a folder lies on, or will lie on once it is made: mount point and type.

    `folder` is absolute. Of those mounted at the same place the last one covers the others.
    """
    lines = [folder, *folder.parents]
    around = [(point, kind) for point, kind in table if Path(point) in lines]
    return max(reversed(around), key=lambda mount: len(Path(mount[0]).parts), default=None)


def refuse_network(folder: Path, table: Iterable[Mount]) -> None:
    """Refuse a store on a network file system.

    Raises:
        StoreError: with the file system that was found, and the way out.
    """
    found = filesystem_of(folder, table)
    if found is None or found[1].lower().removeprefix("fuse.") not in NETWORK:
        return
    point, kind = found
    raise StoreError(
        f"The store {folder} lies on a network file system ({kind}, mounted at {point}). Expected a local disk: "
        "SQLite's write-ahead log needs memory that all its processes share, and a database is damaged without it. "
        "Name a folder on a local disk with --store; MLFLOW_TRACKING_URI sends the runs to an MLflow server instead."
    )
