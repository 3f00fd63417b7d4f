"""From a name, `family` or `family@variant`, to a `TaskFamily`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable

from envs.family import TaskFamily
from envs.presets import FAMILIES


def resolve(name: str) -> tuple[str, str]:
    """Splits `family[@variant]` into both parts, filling in the default variant.

    Raises:
        ValueError: For a name that is not there, with the nearest ones.
    """
    family, separator, variant = name.partition("@")
    if family not in FAMILIES:
        raise ValueError(f"Unknown task family {family!r}{_nearest(family, FAMILIES)}. Known: {', '.join(FAMILIES)}.")
    variants = FAMILIES[family].variants
    variant = variant if separator else FAMILIES[family].default_variant
    if variant not in variants:
        raise ValueError(
            f"Unknown variant {variant!r} of {family}{_nearest(variant, variants)}. Known: {', '.join(variants)}."
        )
    return family, variant


def make(name: str, *, observe_task: bool = False) -> TaskFamily:
    """Builds a task family.

    Args:
        name: `family` or `family@variant`, e.g. "navigation-2d" or "halfcheetah-vel@maml2017".
        observe_task: Append the task to every observation (the oracle).

    Raises:
        ValueError: For an unknown name.
    """
    family, variant = resolve(name)
    entry = FAMILIES[family]
    module = importlib.import_module(entry.module)
    config = getattr(module, entry.config)(variant=variant, **entry.variants[variant][1])
    return TaskFamily(getattr(module, entry.problem)(config), observe_task=observe_task)


def names() -> list[str]:
    """`family@variant` for every preset; the default variant first in its family."""
    return [
        f"{family}@{variant}"
        for family, entry in FAMILIES.items()
        for variant in sorted(entry.variants, key=lambda variant: variant != entry.default_variant)
    ]


def describe() -> list[tuple[str, str]]:
    """(name, one line) for `--list`: every family, and indented under it its variants as `family@variant`."""
    rows = []
    for name in names():
        family, variant = name.split("@")
        entry = FAMILIES[family]
        plain = variant == entry.default_variant
        if plain:
            rows.append((family, entry.summary))
        rows.append((f"  {name}", entry.variants[variant][0] + (f" (plain `{family}`)" if plain else "")))
    return rows


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""
