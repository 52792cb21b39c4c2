"""Packages of the optional extras (`pip install 'janus_pt[EXTRA]'`), imported only where they are used."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from janus_pt.utils.errors import UserError


def is_installed(package: str) -> bool:
    """Whether a top-level package can be imported; it is not imported."""
    return find_spec(package) is not None


def require(module: str, extra: str) -> ModuleType:
    """Import a module of a package that only the extra `extra` installs.

    Args:
        module: dotted name, as in `matplotlib.figure`.

    Raises:
        UserError: the package is not installed; the message names the command that installs it.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # A package that is there, but cannot find one of its own parts, is broken: that keeps its trace.
        missing = (error.name or "").partition(".")[0]
        if missing != package:
            raise
        raise UserError(
            f"{package} is not installed; run: pip install 'janus_pt[{extra}]'"
        ) from None
