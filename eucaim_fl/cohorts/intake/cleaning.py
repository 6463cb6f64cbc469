"""De-identification of one file, as a worker process is asked for it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["clean"]


def clean(item: dict[str, str], shared: dict[str, str]) -> None:
    """De-identify the file `item["source"]` into `item["target"]` with the secret (hexadecimal) in `shared`.

    Raises whatever `deidentify_file` raises, if the file can't be cleaned.
    """
    from eucaim_fl.cohorts.deidentification.clean import deidentify_file

    deidentify_file(Path(item["source"]), Path(item["target"]), bytes.fromhex(shared["secret"]))
