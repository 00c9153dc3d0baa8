"""Reads the code blocks of the documents, so that tests run what the pages show.

A block that is run has a caption, the name of its file or what it is, and `files_of` finds it; or
it has none, and `shown` finds it among those of its page in the same language.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from django.conf import settings

__all__ = [
    "DOCUMENTS",
    "ROOT",
    "Block",
    "blocks",
    "commands",
    "continued",
    "fetched",
    "files_of",
    "module_of",
    "settings_of",
    "shown",
]

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(path for path in (ROOT / "docs").rglob("*.rst") if "_build" not in path.parts),
    ]
)


class Block(NamedTuple):
    """A block of code: where its text begins, in which language it is, and its caption."""

    path: Path
    line: int
    language: str
    caption: str | None
    text: str

    @property
    def page(self) -> str:
        """Its page, as a path from the top of the repository."""
        return str(self.path.relative_to(ROOT))


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


def shown(page: str, language: str) -> list[str]:
    """Return the blocks of a page that are in this language and have no caption, in order.

    Unpack them all: then a block that is added is missed by no test.
    """
    return [
        block.text
        for block in blocks(ROOT / page)
        if block.language == language and block.caption is None
    ]


def files_of(page: str) -> dict[str, str]:
    """Return the blocks of a page that have captions, by these.

    Several with one caption follow each other; one with "(first)" behind it begins them.
    """
    found: dict[str, str] = {}
    for block in blocks(ROOT / page):
        if block.caption is None:
            continue
        name, first, _ = block.caption.partition(" (first)")
        before = found.get(name, "")
        if first:
            found[name] = f"{block.text}\n{before}"
        else:
            found[name] = f"{before}\n\n{block.text}" if before else block.text
    return found


def commands(console: str) -> list[str]:
    """Return what stands behind the prompts of a `console` block, continued lines joined."""
    joined = re.sub(r"\\\n", "\\\n> ", console)
    found: list[str] = []
    for line in joined.splitlines():
        if line.startswith("$ "):
            found.append(line[2:])
        elif line.startswith("> ") and found:
            found[-1] += "\n" + line[2:]
    return found


def continued(code: str) -> str:
    """Put the value that a name has already where an example has `NAME = [...,` or `{...,`."""
    code = re.sub(r"^(\w+) = \[([^\]]*?)\.\.\.", r"\1 = [\2*\1", code, flags=re.MULTILINE)
    return re.sub(r"^(\w+) = \{(\s*)\.\.\.", r"\1 = {\2**\1", code, flags=re.MULTILINE)


def settings_of(code: str, **names: Any) -> dict[str, Any]:
    """Return the settings that an example makes, `...` standing for what the suite has."""
    known = {name: getattr(settings, name) for name in dir(settings) if name.isupper()}
    made: dict[str, Any] = {}
    exec(compile(continued(code), "example", "exec"), {**known, **names}, made)
    for name in ("INSTALLED_APPS", "MIDDLEWARE"):
        if name in made:
            made[name] = list(dict.fromkeys(made[name]))  # the suite may have it already
    return made


def module_of(code: str, **names: Any) -> Any:
    """Return a module made of an example, with the names that it takes for granted."""
    made = ModuleType("example")
    vars(made).update(names)
    exec(compile(continued(code), "example", "exec"), vars(made))
    return made


def fetched(script: str, **page: Any) -> dict[str, Any]:
    """Run the script of a page in Node, and return what it asked of `fetch`: `url`, and the rest.

    ``page`` are the globals that a browser would give it. `replaced` in the answer is the address
    that it put into the history.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    program = f"""
    Object.assign(globalThis, {json.dumps(page)});
    const seen = {{replaced: null}};
    globalThis.history = {{replaceState: (state, title, url) => {{ seen.replaced = url; }}}};
    globalThis.fetch = async (url, options) => {{
      Object.assign(seen, {{url, ...options}});
      return {{json: async () => ({{}})}};
    }};
    {script}
    console.log(JSON.stringify(seen));
    """
    done = subprocess.run(
        [node, "--input-type=module", "--eval", program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen
