"""Copies of what leaves, for the hospital's own eyes: each answer in a folder named by its digest in the audit log."""

from __future__ import annotations

import json
from pathlib import Path

from eucaim_fl.arrays import encode_arrays
from eucaim_fl.durable import write_atomically
from eucaim_fl.errors import JournalError
from eucaim_fl.site.gate import Outgoing

__all__ = ["keep_copy"]


def keep_copy(folder: Path, digest: str, answer: Outgoing) -> Path:
    """Write an answer as it is about to leave; returns its folder, `<digest>` in `folder`.

    It holds report.json, and update.safetensors and pictures.safetensors where the answer has such.
    Raises JournalError if it can't be written: whoever asked for copies wants nothing to leave without one.
    """
    place = folder / digest
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise JournalError(
            "A copy of what leaves can't be kept.",
            fix="Check the folder's permissions and the disk.",
            local_detail=f"{place}: {problem.strerror}",
        ) from None
    if answer.update:
        write_atomically(place / "update.safetensors", encode_arrays(answer.update))
    if answer.pictures is not None:
        write_atomically(place / "pictures.safetensors", encode_arrays({"pictures": answer.pictures}))
    text = json.dumps(answer.report.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    write_atomically(place / "report.json", text.encode())
    return place
