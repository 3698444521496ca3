"""How numbers are written for people."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: ``many`` where adding an s does not make the plural."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
