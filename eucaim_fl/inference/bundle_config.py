"""A MONAI bundle's configuration, read as data: what would have to be executed is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from eucaim_fl.errors import ModelRefusedError
from eucaim_fl.inference.bundle_files import BundleFiles

__all__ = ["BundleConfig", "read_mapping"]

_LARGEST = 2**20
_DEEPEST = 32
_MOST_VALUES = 100_000
_REFERENCE = re.compile(r"@[A-Za-z0-9_]+(?:(?:#|::)[A-Za-z0-9_]+)*")
_NAMES = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")


def read_mapping(raw: bytes, name: str) -> dict[str, Any]:
    """A JSON or YAML file as plain values. name: of the file; `.json` is read as JSON, everything else as YAML.

    Raises ModelRefusedError if it is no mapping, too long, nested too deep, or has YAML tags, anchors or aliases.
    """
    if len(raw) > _LARGEST:
        raise ModelRefusedError(f"{name} is longer than {_LARGEST // 2**20} MiB.")
    try:
        if name.endswith(".json"):
            found = json.loads(raw)
        else:
            text = raw.decode("utf-8")
            _check_plain(text)
            found = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as problem:
        raise ModelRefusedError(
            f"{name} can't be read.",
            fix="Write plain JSON or YAML, without tags, anchors and aliases.",
            local_detail=str(problem)[:500],
        ) from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ModelRefusedError(f"{name} holds no names with values.")
    return found


def _check_plain(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise ValueError("it has a tag, an anchor or an alias")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError("it is nested too deep")


class BundleConfig:
    """configs/inference and configs/metadata of a bundle. Only the parts that are asked for are looked at."""

    def __init__(self, files: BundleFiles) -> None:
        """Raises ModelRefusedError if one of the two is missing or can't be read as data."""
        self._left = 0
        raw = files.read("configs/metadata.json", _LARGEST)
        if raw is None:
            raise _missing("configs/metadata.json")
        self.metadata = read_mapping(raw, "configs/metadata.json")
        for self._name in _NAMES:
            raw = files.read(self._name, _LARGEST)
            if raw is not None:
                self._root = read_mapping(raw, self._name)
                return
        raise _missing(_NAMES[0])

    def part(self, name: str) -> Any:
        """A part of configs/inference as plain values, its references followed; None if it is not there.

        Raises ModelRefusedError for an expression (`$…`), a macro (`%…`), a reference (`@…`) that leads nowhere, in a
        circle or to an expression, and references that make a short file very long.
        """
        self._left = _MOST_VALUES
        return self._plain(self._root[name], name, ()) if name in self._root else None

    def _plain(self, value: Any, place: str, through: tuple[str, ...]) -> Any:
        if len(through) > _DEEPEST or place.count(".") > _DEEPEST:
            raise self._refused(place, "is nested too deep, or refers to itself")
        self._left -= 1
        if self._left < 0:
            raise self._refused(place.partition(".")[0], "holds too many values")
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) and not key.startswith(("$", "@", "%")) for key in value):
                raise self._refused(place, "has a name that is an expression")
            if value.get("_disabled_"):
                raise self._refused(place, "is disabled")
            return {key: self._plain(inner, f"{place}.{key}", through) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._plain(inner, f"{place}.{number}", through) for number, inner in enumerate(value)]
        if not isinstance(value, str):
            return value
        if value.startswith("$"):
            raise self._refused(place, "is a Python expression")
        if value.startswith("%"):
            raise self._refused(place, "is a macro")
        if not value.startswith("@"):
            return value
        if value in through:
            raise self._refused(place, "is nested too deep, or refers to itself")
        if not _REFERENCE.fullmatch(value):
            raise self._refused(place, "is a reference within an expression")
        return self._plain(self._found(value, place), place, (*through, value))

    def _found(self, reference: str, place: str) -> Any:
        here: Any = self._root
        for step in re.split(r"#|::", reference[1:]):
            if isinstance(here, Mapping) and step in here:
                here = here[step]
            elif isinstance(here, list) and step.isdigit() and int(step) < len(here):
                here = here[int(step)]
            else:
                raise self._refused(place, "refers to something that is not there")
        return here

    def _refused(self, place: str, why: str) -> ModelRefusedError:
        return ModelRefusedError(
            f"{place} in the bundle's {self._name} {why}; it is read as data only.",
            fix="Write the value out in a copy of the bundle, or bring the model as ONNX.",
        )


def _missing(name: str) -> ModelRefusedError:
    return ModelRefusedError(f"The bundle has no {name}.", fix="Give the folder (or ZIP file) of a MONAI bundle.")
