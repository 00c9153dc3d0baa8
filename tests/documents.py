"""Reads the code blocks of the documents."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Block", "blocks"]


class Block(NamedTuple):
    """A block of code: where its text begins, in which language it is, and its caption."""

    path: Path
    line: int
    language: str
    caption: str | None
    text: str

    def commands(self) -> list[str]:
        """Return what stands behind a prompt in a `console` block, continued lines joined."""
        joined = re.sub(r"\\\n", "\\\n> ", self.text)
        found: list[str] = []
        for line in joined.splitlines():
            if line.startswith("$ "):
                found.append(line[2:])
            elif line.startswith("> ") and found:
                found[-1] += "\n" + line[2:]
        return found


def blocks(path: Path) -> Iterator[Block]:
    """Yield the code blocks of a .rst or .md file, in order."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            yield _block(path, text, found, None, 2)
        return
    pattern = r"^( *)\.\. code-block:: (\w+)\n((?:\1 +:.*\n)*)\n((?:\1 +.*\n|\s*\n)+)"
    for found in re.finditer(pattern, text + "\n", re.MULTILINE):
        caption = re.search(r":caption: (.*)", found[3])
        yield _block(path, text, found, caption and caption[1], 4)


def _block(path: Path, text: str, found: re.Match[str], caption: str | None, group: int) -> Block:
    line = text.count("\n", 0, found.start(group)) + 1
    code = textwrap.dedent(found[group]).strip("\n") + "\n"
    return Block(path, line, found[group - 1] if group == 2 else found[2], caption, code)
