"""Where LIBERO's meshes, textures and settings are. Imports neither LIBERO nor robosuite.

LIBERO ships its task files and initial states; meshes and textures are a separate download, for which LIBERO's code
calls huggingface_hub in a way that versions from 1.0 on refuse. Its first import asks a question on standard input
unless a settings file exists.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

from classact.data.images import cache_folder
from classact.errors import ConfigError
from classact.utils.storage import atomic_path

ASSETS_VARIABLE = "CLASSACT_LIBERO_ASSETS"  # names a folder with LIBERO's assets, before all other places
CONFIG_VARIABLE = "LIBERO_CONFIG_PATH"  # LIBERO's own: the folder of its config.yaml, ~/.libero where unset
HUB = "lerobot/libero-assets"  # the data set on the Hugging Face hub that LIBERO downloads
DOWNLOADED = Path("~/.cache/libero/assets")  # where LIBERO puts it

NEEDED = (
    "scenes/libero_floor_base_style.xml",
    "stable_hope_objects/alphabet_soup/alphabet_soup.xml",
    "stable_scanned_objects/basket/basket.xml",
    "textures",
)
"""Files by which the assets of LIBERO-Object are recognised."""


def package_folder() -> Path:
    """The folder of ``libero.libero``, found without importing it."""
    found = importlib.util.find_spec("libero.libero")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'libero.libero'", name="libero")
    return Path(next(iter(found.submodule_search_locations)))


def ensure_config(package: Path) -> Path:
    """LIBERO's config.yaml, written if missing, so that importing LIBERO asks nothing.

    The user's own, at ``$LIBERO_CONFIG_PATH`` or in ~/.libero, is used as it is. A missing one is written with LIBERO's
    defaults: at ``LIBERO_CONFIG_PATH``, else in classact's cache, to which this process's ``LIBERO_CONFIG_PATH`` is
    then set. The home folder stays as it was.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    file = Path(named or os.path.expanduser("~/.libero")) / "config.yaml"  # noqa: PTH111 (there may be no home)
    if file.exists():
        return file
    if not named:
        file = cache_folder() / "libero" / "config.yaml"
    values = {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": package.parent / "datasets",
        "assets": package / "assets",
    }
    # JSON strings are YAML, whatever characters a path has.
    text = "".join(f"{key}: {json.dumps(str(value))}\n" for key, value in values.items())
    if not file.exists() or file.read_text() != text:  # of an older environment
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as temporary:
            temporary.write_text(text)
    os.environ[CONFIG_VARIABLE] = str(file.parent)
    return file


def find_assets(package: Path, configured: str = "") -> Path:
    """The folder of LIBERO's assets; a ConfigError where no place has them, or the variable's folder is incomplete.

    Looked for, in this order: ``CLASSACT_LIBERO_ASSETS``; ``configured``, the entry ``assets`` of LIBERO's config.yaml;
    ``package``/assets; ~/.cache/libero/assets.
    """
    given = os.environ.get(ASSETS_VARIABLE)
    if given:
        lack = missing(Path(given))
        if lack:
            raise ConfigError(
                f"libero-object: {ASSETS_VARIABLE} is {given!r}, which has no {lack}. Expected the folder that holds "
                f"scenes/, textures/ and stable_hope_objects/. {_HOW}"
            )
        return Path(given)
    places = [Path(configured)] if configured else []
    places += [package / "assets", Path(os.path.expanduser(DOWNLOADED))]  # noqa: PTH111 (there may be no home)
    for place in places:
        if not missing(place):
            return place.resolve()
    looked = "; ".join(f"{place} (no {missing(place)})" for place in dict.fromkeys(places))
    raise ConfigError(
        f"libero-object: LIBERO's meshes and textures are not here; they do not come with its package. Looked in "
        f"{looked}. {_HOW}"
    )


_HOW = (
    f"To get them: hf download {HUB} --repo-type dataset --local-dir {DOWNLOADED}. Or set {ASSETS_VARIABLE}, or the "
    f"entry 'assets' of LIBERO's config.yaml, to a folder that has them."
)


def missing(folder: Path) -> str:
    """The first thing that a folder of assets lacks; empty where complete."""
    if not folder.is_dir():
        return "such folder"
    return next((name for name in NEEDED if not (folder / name).exists()), "")
