"""What stands in the documents is code that compiles, names that exist, and words that are words.

`docs/tutorial/quickstart.rst` is run as a whole by tests/test_release.py, the migration guides and
other examples by the tests that their pages name.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

from accesspass import exceptions
from accesspass.cache import exceptions as cache_exceptions
from tests.documents import Block, blocks

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(path for path in (ROOT / "docs").rglob("*.rst") if "_build" not in path.parts),
    ]
)
BLOCKS = [block for path in DOCUMENTS for block in blocks(path)]
# Nothing here can check these.
UNCHECKED = {
    "",
    "diff",
    "html",
    "ini",
    "javascript",
    "nginx",
    "none",
    "po",
    "promql",
    "psql",
    "sql",
    "text",
    "yaml",
}


def place(block: Block) -> str:
    return f"{block.path.relative_to(ROOT)}:{block.line}"


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def tree(block: Block) -> ast.Module:
    if block.language == "pycon":
        text = "".join(
            example.source for example in doctest.DocTestParser().get_examples(block.text)
        )
    else:
        # `{..., "key": value}` says what is added to a dict; Python has no such display.
        text = re.sub(r"\{(\s*)\.\.\.,", r"{\1**{},", block.text)
    return compile(text, place(block), "exec", ast.PyCF_ONLY_AST)


def test_every_block_is_in_a_language_that_is_checked_or_known_not_to_be() -> None:
    checked = {"console", "json", "pycon", "python", "sh", "toml"}
    assert {block.language for block in BLOCKS} - checked - UNCHECKED == set()
    assert len(of("python", "pycon")) > 20


def test_every_python_block_compiles() -> None:
    for block in of("python", "pycon"):
        tree(block)


def test_what_a_block_imports_from_accesspass_is_there() -> None:
    for block in of("python", "pycon"):
        for node in ast.walk(tree(block)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("accesspass"):
                        importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("accesspass"):
                assert node.module is not None
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


def test_every_json_block_is_json() -> None:
    for block in of("json"):
        try:
            json.loads(block.text)
        except ValueError as error:
            pytest.fail(f"{place(block)}: {error}")


def commands() -> list[tuple[str, str]]:
    found = [(place(block), command) for block in of("console") for command in block.commands()]
    return found + [(place(block), block.text) for block in of("sh")]


def test_every_command_is_one_that_a_shell_can_read() -> None:
    for where, command in commands():
        # What is to be filled in stands in angle brackets or as dots.
        text = re.sub(r"<[A-Za-z][^<>\n]*>", "WORD", command)
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, f"{where}: {done.stderr}"


def test_every_command_of_manage_py_and_its_options_exist() -> None:
    known = get_commands()
    checked = 0
    for where, text in commands():
        for name, rest in re.findall(r"manage\.py (accesspass_\w+)([^|>#&;\n]*)", text):
            assert name in known, f"{where}: {name}"
            parser = load_command_class(str(known[name]), name).create_parser("manage.py", name)
            for option in re.findall(r"(?<=\s)--[a-z-]+", rest):
                assert option in parser._option_string_actions, f"{where}: {name} {option}"
            checked += 1
    assert checked > 0


def test_every_target_of_make_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        named = set(re.findall(r"`make ([a-z-]+)", text)) | set(
            re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)
        )
        assert named <= targets, f"{path.name}: {named - targets}"


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_between_the_documents_leads_somewhere() -> None:
    """Those between pages of docs/ are checked by Sphinx, as is every :doc: and :ref:."""
    for path in DOCUMENTS:
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            name, _hash, anchor = target.partition("#")
            linked = path.parent / name if name else path
            assert linked.exists(), f"{path.name}: {target}"
            if anchor:
                assert anchor in anchors(linked), f"{path.name}: {target}"


def test_no_word_is_misspelled() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "codespell_lib",
            "--skip=*.po,*.mo,*/_build/*,*.json,*.svg,*.png,*.pyc",
            "--ignore-words-list=passt,durin",  # German, in an example; a library
            *ROOT.glob("*.md"),
            ROOT / "accesspass",
            ROOT / "docs",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_error_has_its_code_and_status_on_the_page() -> None:
    page = (ROOT / "docs" / "reference" / "exceptions.rst").read_text(encoding="utf-8")
    rows = re.findall(r"\* - ``(\w+)``\n +- ``(\w+)``\n +- (\d+)\n +- \S", page)
    raised = {
        error.__name__: (error.code, str(error.status))
        for error in map(vars(exceptions).__getitem__, exceptions.__all__)
    }
    assert {name: (code, status) for name, code, status in rows} == raised
    for name in cache_exceptions.__all__:
        assert f"``{name}``" in page
