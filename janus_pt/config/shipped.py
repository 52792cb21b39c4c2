"""The configurations that come with the package, by name: `janus_tiny`, `tasks/fairytaleqa`."""

from __future__ import annotations

from pathlib import Path

from janus_pt.utils.errors import UserError
from janus_pt.utils.suggest import did_you_mean

FOLDER = Path(__file__).parents[1] / "configs"
"""In a checkout a link to `configs/` beside the package."""


def shipped_configs() -> list[str]:
    """Their names."""
    paths = sorted(FOLDER.rglob("*.json"))
    return [str(path.relative_to(FOLDER).with_suffix("")) for path in paths]


def config_path(name: str | Path) -> Path:
    """The file of a configuration.

    Args:
        name: a path, or the name of a configuration that comes with the package.

    Raises:
        UserError: there is neither.
    """
    path = Path(name)
    # A file of the user's comes first; with a suffix it is meant to be one.
    if path.is_file() or path.suffix:
        return path
    names = shipped_configs()
    if str(name) not in names:
        raise UserError(
            f"{name}: no such file, and no configuration of the package; "
            f"{did_you_mean(str(name), names)}give a JSON file or one of {', '.join(names)}"
        )
    return FOLDER / f"{name}.json"
