"""Plain data as YAML in block style, as people read manifests; without PyYAML."""

from __future__ import annotations

import json
import re

PLAIN = re.compile(r"[A-Za-z/][-\w./]*")
FOREIGN = re.compile(r"[^ -~]")
WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
"""What YAML reads as something other than text."""


def as_yaml(value: object, indent: int = 0) -> str:
    """Dicts, lists, strings, numbers and booleans."""
    pad = "  " * indent
    if isinstance(value, dict):
        lines = [
            f"{pad}{_scalar(key)}:{_below(each, indent)}" for key, each in value.items()
        ]
        return "".join(lines)
    if isinstance(value, list):
        return "".join(f"{pad}- {_item(each, indent)}" for each in value)
    return f"{pad}{_scalar(value)}\n"


def _below(value: object, indent: int) -> str:
    if value and isinstance(value, dict | list):
        return "\n" + as_yaml(value, indent + isinstance(value, dict))
    return f" {_scalar(value)}\n"


def _item(value: object, indent: int) -> str:
    return as_yaml(value, indent + 1).lstrip(" ")


def _scalar(value: object) -> str:
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in WORDS:
        return value
    # As YAML escapes them: JSON would write a character beyond 16 bits as two.
    text = json.dumps(value, ensure_ascii=False)
    return FOREIGN.sub(lambda found: f"\\U{ord(found[0]):08x}", text)
