"""Where recipes, configuration groups and site files lie: in the user's folder, or with the package."""

from __future__ import annotations

from pathlib import Path

from eucaim_fl.errors import SiteFileError
from eucaim_fl.registry import suggestion

__all__ = ["configs_folder", "experiment_files", "site_file"]

_PACKAGE = Path(__file__).resolve().parent


def _shipped(name: str) -> Path:
    """A folder of the checkout, or of the installed wheel."""
    checkout = _PACKAGE.parent / name
    return checkout if (_PACKAGE.parent / "pyproject.toml").is_file() else _PACKAGE / "_resources" / name


def configs_folder() -> Path:
    """The folder with the configuration groups that come with the package."""
    return _shipped("configs")


def experiment_files() -> dict[str, Path]:
    """Recipes by name; one in the working folder's `experiments/` goes before one of the package."""
    return {
        path.stem: path
        for folder in (_shipped("experiments"), Path("experiments"))
        if folder.is_dir()
        for path in sorted(folder.glob("*.yaml"))
    }


def site_file(name: str) -> Path:
    """The site file that a recipe means: a path that ends in .yaml, or a name looked up in `sites/`.

    Raises SiteFileError that names the nearest known site if there is none.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if path.is_file():
            return path.absolute()
        raise SiteFileError("A site file named in the recipe does not exist.", local_detail=name)
    folders = [folder for folder in (Path("sites"), _shipped("sites")) if folder.is_dir()]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return (folder / f"{name}.yaml").absolute()
    known = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    raise SiteFileError(f"There is no site file for '{name}'.", fix=suggestion(name, known))
