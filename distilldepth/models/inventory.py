"""What there is to say of every model that has a name, and whether its weights are here."""

from __future__ import annotations

from typing import Any

from distilldepth.models.registry import ENTRIES, Entry, has_weights


def describe(role: str | None = None, *, macs: bool = False) -> list[dict[str, Any]]:
    """Describe every named model, for listings.

    Args:
        role: `teacher`, `student` or None for all.
        macs: count the multiply-accumulates too, which takes seconds: networks are made, without weights.

    Returns:
        One dictionary per model: name, role, family, parameters, licence, source, quantity, at_hand (whether its
        weights are on this machine; true for a student that has none), path (where they are, or None). With `macs`
        further macs, macs_thop (see `Costs`) and macs_size (height and width that the network sees of a square
        image), each None where the architecture is known from the checkpoint alone.
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
        if macs:
            rows[-1] |= _macs(entry)
    return rows


def _macs(entry: Entry) -> dict[str, Any]:
    from distilldepth.models.costs import count_costs  # Brings torch.

    costs = count_costs(entry)
    if costs is None:
        return {"macs": None, "macs_thop": None, "macs_size": None}
    return {"macs": costs.macs, "macs_thop": costs.macs_thop, "macs_size": [costs.height, costs.width]}
