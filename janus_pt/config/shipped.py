"""The configurations that come with the package, by name: `janus_tiny`, `tasks/fairytaleqa`."""

from __future__ import annotations

from pathlib import Path

from janus_pt.utils.errors import UserError
from janus_pt.utils.suggest import did_you_mean

FOLDER = Path(__file__).parents[1] / "configs"
"""In a checkout a link to `configs/` beside the package."""


def shipped_configs(corpora: bool = False) -> list[str]:
    """The names of the configurations of runs, or of corpora."""
    paths = sorted(FOLDER.rglob("*.json"))
    names = [str(path.relative_to(FOLDER).with_suffix("")) for path in paths]
    return [name for name in names if name.startswith("corpora/") == corpora]


def config_path(name: str | Path, corpora: bool = False) -> Path:
    """The file of a configuration.

    Args:
        name: a path, or the name of a configuration that comes with the package.
        corpora: whether it describes a corpus, not a run.

    Raises:
        UserError: there is neither.
    """
    path = Path(name)
    names = shipped_configs(corpora)
    # A file of the user's comes first.
    if str(name) in names and not path.is_file():
        return FOLDER / f"{name}.json"
    # With a suffix a file is meant, which may be missing.
    if path.exists() or path.suffix:
        return path
    raise UserError(
        f"{name}: no such file, and no configuration of the package; "
        f"{did_you_mean(str(name), names)}give a JSON file or one of {', '.join(names)}"
    )
