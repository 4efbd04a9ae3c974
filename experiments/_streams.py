"""Standard streams for which no command fails: what cannot be written is dropped."""

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any


def keep_streams() -> None:
    """Replace standard output and error by streams that drop what they cannot write, and open those that are closed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The next file to be opened, a database perhaps, would take its number, and with it what libraries print.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, descriptor, errors in (("stdout", 1, "replace"), ("stderr", 2, "backslashreplace")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue  # Somebody else's: a notebook's, a test's.
        raw = _LossyOutput(descriptor, "wb", closefd=False)
        is_unbuffered = stream is not None and stream.write_through
        buffer: Any = raw if is_unbuffered else io.BufferedWriter(raw)
        replacement = io.TextIOWrapper(
            buffer,
            encoding=stream and stream.encoding,
            errors=errors,
            line_buffering=stream is None or stream.line_buffering,
            write_through=is_unbuffered,
        )
        setattr(sys, name, replacement)


class _LossyOutput(io.FileIO):
    """A descriptor that drops what it cannot write: the reader or the terminal is gone, the disk is full."""

    has_warned = False

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        rest = memoryview(data)
        try:
            while rest:
                written = super().write(rest)
                if not written:  # Another program has made it non-blocking.
                    select.select([], [self], [])
                rest = rest[written or 0 :]
        except OSError as error:
            self._warn(error)
        return len(data)

    def _warn(self, error: OSError) -> None:
        # Where the reader has gone, as behind `| head`, nothing is wrong.
        if self.has_warned or error.errno in (errno.EPIPE, errno.ECONNRESET) or self.fileno() == 2:
            return
        self.has_warned = True
        with suppress(OSError):
            line = f"Warning: Standard output cannot be written: {error.strerror}. What is not written is dropped.\n"
            os.write(2, line.encode())
