"""The checkpoints of a study: those that no trial can go on from."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fashion_study.finding import Finding, Kind, repairing
from fashion_study.store.checkpoints import SUFFIX, UnusableCheckpointError, read
from fashion_study.store.trials import TrialRecord

FILE_NAME = re.compile(rf"trial-(\d{{3,9}})(-repeat-\d+)?{re.escape(SUFFIX)}")


def useless_checkpoints(folder: Path, records: Iterable[TrialRecord], *, continues_trials: bool) -> Iterator[Finding]:
    """Find files that were being written, are torn, or are of trials that need none.

    With `continues_trials` a trial may go on from the checkpoint of one that has ended.
    """
    ended = {record.number for record in records if record.state.is_ended and not continues_trials}
    for path in sorted(folder.glob(f"*{SUFFIX}*")):
        if (named := FILE_NAME.fullmatch(path.name)) is None:
            what = "was being written when its process ended"
        elif not named[2] and int(named[1]) in ended:
            what = "is of a trial that has ended"
        elif _is_torn(path):
            what = "is not as it was written: what it was of begins again with its first epoch"
        else:
            continue
        delete = repairing("it is deleted now", path.unlink, True)
        yield Finding(Kind.CHECKPOINT, f"checkpoint {path.name}", what, "deletes it", delete)


def _is_torn(path: Path) -> bool:
    try:
        read(path)
    except UnusableCheckpointError:
        return True
    return False
