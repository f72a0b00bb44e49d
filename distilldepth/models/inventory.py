"""What there is to say of every model that has a name, and whether its weights are here."""

from __future__ import annotations

from typing import Any

from distilldepth.models.registry import ENTRIES, has_weights


def describe(role: str | None = None) -> list[dict[str, Any]]:
    """Describe every named model, for listings.

    Args:
        role: `teacher`, `student` or None for all.

    Returns:
        One dictionary per model: name, role, family, parameters, licence, source, quantity, at_hand (whether its
        weights are on this machine; true for a student that has none), path (where they are, or None).
    """
    from distilldepth.models.hub import find_local

    rows = []
    for entry in ENTRIES.values():
        if role not in (None, entry.role) and entry.role != "both":
            continue
        path = entry.folder if has_weights(entry) else find_local(entry)
        rows.append(
            {
                "name": entry.name,
                "role": entry.role,
                "family": entry.family,
                "parameters": entry.parameters,
                "licence": entry.licence,
                "source": entry.source,
                "quantity": entry.quantity,
                "at_hand": path is not None or entry.role == "student",
                "path": None if path is None else str(path),
            }
        )
    return rows
