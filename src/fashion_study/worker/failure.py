"""What a worker says of an error, short enough to arrive whole."""

import traceback

# `Connection` writes a message of up to 16 KiB in one piece, and the kernel passes that on as a whole or not at all. A
# longer one takes two writes or more: a worker that is stopped between them would leave the coordinator waiting for
# the rest, and with it every other worker. So much is left for what a result says besides.
LONGEST = 8 * 1024


def truncated_traceback() -> str:
    """Write the traceback of the error at hand, with its middle left out where it takes more than 8 KiB."""
    text = traceback.format_exc()
    encoded = text.encode(errors="backslashreplace")
    if len(encoded) <= LONGEST:
        return text
    head, tail = encoded[: LONGEST // 4], encoded[-LONGEST // 2 :]
    left_out = f"\n... {len(encoded) - len(head) - len(tail):,} bytes are left out here ...\n"
    return head.decode(errors="ignore") + left_out + tail.decode(errors="ignore")
