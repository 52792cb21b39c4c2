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

    The message names the problem (key, file, line) and says what to do about it. Launchers print it without a
    stack trace and exit with code 2; every other exception is a defect of ours and keeps its trace.

    All ranks meet most mistakes, and then the first rank alone reports them; `local` marks a mistake that only this
    rank has met.
    """

    def __init__(self, message: str, local: bool = False) -> None:
        super().__init__(message)
        self.local = local


def warn(text: str, local: bool = False) -> None:
    """Warn the user on stderr; on the first rank alone unless `local`, as in `UserError`."""
    if local or os.environ.get("RANK", "0") == "0":
        # Not print: tqdm moves a progress bar out of the way.
        tqdm.write(f"warning: {redact(text)}", file=sys.stderr)


@contextmanager
def reported() -> Iterator[None]:
    """Turn a `UserError` raised inside into one message on stderr, passwords masked, and exit code 2."""
    try:
        yield
    except UserError as error:
        if error.local or os.environ.get("RANK", "0") == "0":
            print(f"error: {redact(str(error))}", file=sys.stderr, flush=True)
        # On all ranks, so that the launcher ends the job.
        raise SystemExit(EXIT_USER_ERROR) from None
    except KeyboardInterrupt:
        # 128 + SIGINT, as shells have it.
        raise SystemExit(130) from None


def entry_point(main: Callable[[], None]) -> None:
    """Run a launcher's `main` with user errors reported as one message."""
    with reported():
        main()
