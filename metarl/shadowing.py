"""Says when `import envs` would find something else than the package of task families that lies beside `metarl`.

Nothing here imports `envs`: `metarl` works without it, and with families of anybody's.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from pathlib import Path

_BESIDE = Path(__file__).resolve().parents[1] / "envs"
_OURS = "def register_envs("
"""Stands in our `envs/__init__.py`, which a stranger's package of that name replaces when installed over ours."""


def warn_if_envs_is_shadowed() -> None:
    """Warns, in one sentence, of a folder, a file or an installed package that takes the place of our `envs`.

    A warning rather than an error: somebody may use `metarl` with an `envs` of his own and mean it.
    """
    found = _find_envs()
    if found is None or not (_BESIDE / "registry.py").exists() or _is_ours(found):
        return
    owners = [name for name in importlib.metadata.packages_distributions().get("envs", []) if name != "metarl-toolkit"]
    if owners and "site-packages" in found.parts:
        cure = f"run `pip uninstall {owners[0]}` and install metarl-toolkit again"
    else:
        cure = "rename it, or run Python from another folder"
    warnings.warn(
        f"`import envs` finds {found} and not metarl's package of task families ({_BESIDE}): {cure}; if you use no "
        "family of metarl's, all is well.",
        stacklevel=3,
    )


def _find_envs() -> Path | None:
    """The file or, where it has none, the folder that `import envs` takes."""
    try:
        spec = importlib.util.find_spec("envs")
    except (ImportError, ValueError):  # something odd in sys.modules, or a finder of somebody's that fails
        return None
    if spec is None:
        return None
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or [])
    return Path(places[0]) if places else None


def _is_ours(found: Path) -> bool:
    try:
        return _OURS in found.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
