"""The one exception that means "the user can fix this", and how a launcher reports it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from janus_pt.utils.redact import redact

EXIT_USER_ERROR = 2


class UserError(ValueError):
    """Bad input: config, data, checkpoint or arguments.

    The message names what is wrong (key, file, line) and what to do about it. Launchers print it without a
    stack trace and leave with exit code 2; everything else is a defect of ours and keeps its trace.

    Most mistakes are met by all ranks alike, and the first rank tells them; `local` marks one that only this rank
    has met.
    """

    def __init__(self, message: str, local: bool = False) -> None:
        super().__init__(message)
        self.local = local


def warn(text: str, local: bool = False) -> None:
    """Tell the user on stderr, beside a progress line; on the first rank alone unless `local`, as in `UserError`."""
    if local or os.environ.get("RANK", "0") == "0":
        tqdm.write(f"warning: {redact(text)}", file=sys.stderr)


@contextmanager
def reported() -> Iterator[None]:
    """Turn a `UserError` raised inside into one message on stderr, passwords masked, and exit code 2."""
    try:
        yield
    except UserError as error:
        if error.local or os.environ.get("RANK", "0") == "0":
            print(f"error: {redact(str(error))}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_USER_ERROR) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def entry_point(main: Callable[[], None]) -> None:
    """Run a launcher's `main` with user errors reported as one message."""
    with reported():
        main()
