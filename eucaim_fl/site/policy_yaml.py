"""Plain YAML with the line of every key: no tags, no anchors or aliases, no key twice, bounded in size and depth."""

from __future__ import annotations

import re

import yaml

from eucaim_fl.errors import PolicyError

__all__ = ["LARGEST_POLICY_BYTES", "read_yaml"]

LARGEST_POLICY_BYTES = 64 * 1024
_DEEPEST = 8
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,15})")


def read_yaml(raw: bytes) -> tuple[dict[str, object], dict[str, int]]:
    """A YAML mapping as plain values, and dotted key → line, counted from 1; items of lists are keys 0, 1, ….

    Only decimal numbers, true and false (and yes, no, on, off), null and text are told apart: 20:00 stays text and so
    does 2027-12-31, which YAML 1.1 would read as a number and a date.
    Raises PolicyError if it is longer than 64 kB, no UTF-8, no YAML, no mapping, has a tag, an anchor, an alias, a key
    that is no text or comes twice, or is nested deeper than 8.
    """
    if len(raw) > LARGEST_POLICY_BYTES:
        raise PolicyError(f"The policy is longer than {LARGEST_POLICY_BYTES} bytes.")
    try:
        text = raw.decode("utf-8")
        _check_plain(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        raise PolicyError("The policy is not UTF-8 text.") from None
    except (yaml.YAMLError, ValueError) as problem:
        mark = getattr(problem, "problem_mark", None)
        at = f" at line {mark.line + 1}" if mark is not None else ""
        raise PolicyError(f"The policy can't be read as YAML{at}.", local_detail=str(problem)) from None
    if not isinstance(root, yaml.MappingNode):
        raise PolicyError("The policy holds no mapping of keys to values.")
    lines: dict[str, int] = {}
    values = _mapping(root, "", lines)
    return values, lines


def _check_plain(text: str) -> None:
    """Look at the events before anything is built: none is nested too deep, refers to another, or has a tag."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise PolicyError(f"The policy has an anchor or an alias at line {line}.", fix="Write the value out.")
        if getattr(event, "tag", None) is not None:
            raise PolicyError(f"The policy has a tag at line {line}.", fix="Write plain values.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise PolicyError(f"The policy is nested too deep at line {line}.")


def _mapping(node: yaml.MappingNode, prefix: str, lines: dict[str, int]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise PolicyError(f"The policy has a key that is no text at line {line}.")
        if key.value in values:
            raise PolicyError(
                f"The policy has a key twice, the second time at line {line}.",
                local_detail=f"key '{prefix}{key.value}'",
            )
        lines[f"{prefix}{key.value}"] = line
        values[key.value] = _value(value, f"{prefix}{key.value}", lines)
    return values


def _value(node: yaml.Node, place: str, lines: dict[str, int]) -> object:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, f"{place}.", lines)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for number, item in enumerate(node.value):
            lines[f"{place}.{number}"] = item.start_mark.line + 1
            items.append(_value(item, f"{place}.{number}", lines))
        return items
    return _scalar(node)


def _scalar(node: yaml.Node) -> object:
    text: str = node.value
    match node.tag.rpartition(":")[2]:
        case "null":
            return None
        case "bool":
            return text.lower() in ("true", "yes", "on")
        case "int" if _INTEGER.fullmatch(text):
            return int(text)
        case "float" if re.fullmatch(r"[-+]?[0-9]*\.?[0-9]*([eE][-+]?[0-9]{1,3})?", text):
            return float(text)
        case _:
            return text
