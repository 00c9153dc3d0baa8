"""Every code block of the documents is run by a test, or stands here with the reason why not.

The tests that run them take them from the pages, by `tests.documents`. Here is checked that none is
forgotten, that what cannot be run compiles and names what exists, and that words are words.
"""

from __future__ import annotations

import base64
import inspect
import re
import subprocess
import sys
from collections import Counter
from importlib import import_module
from importlib.metadata import metadata
from pathlib import Path
from urllib.parse import urlsplit

from django.core.cache.backends.base import BaseCache
from django.core.management import get_commands, load_command_class

from accesspass import accounts, background, exceptions, models, sessions, signals, tokens
from accesspass.cache import ReplicatedCache
from accesspass.cache import exceptions as cache_exceptions
from accesspass.conf import conf
from accesspass.hooks import Hooks
from benchmarks.report import rst
from tests.documents import DOCUMENTS, ROOT, Block, blocks, commands, shown

BLOCKS = [block for path in DOCUMENTS for block in blocks(path)]
TESTS = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
# Blocks that no test runs: of which page, in which language, how many, and why.
NOT_RUN = {
    ("docs/explanation/security.rst", "text", 1): "measured by make bench-enumeration",
    ("docs/how-to/passwords.rst", "text", 1): "measured on the machine that the page names",
}
CALL = re.compile(r'\b(shown|files_of|follow)\(\s*"([^"]+)"(?:,\s*"(\w+)")?\s*\)')
CALLS = [(text, *call) for text in TESTS.values() for call in CALL.findall(text)]


def is_run(block: Block) -> bool:
    """Whether a test takes it from its page: whole pages, what has a caption, or what has none."""
    for text, function, page, language in CALLS:
        if page != block.page:
            continue
        if function == "follow":
            if block.language != "python" or block.caption is not None:  # a file to be written
                return True
        elif function == "files_of" and block.caption is not None:
            if f'"{block.caption.removesuffix(" (first)")}"' in text:
                return True
        elif function == "shown" and block.caption is None and language == block.language:
            return True
    return False


def test_every_block_is_run_by_a_test_or_has_a_reason_not_to_be() -> None:
    left_out = Counter((x.page, x.language) for x in BLOCKS if not is_run(x))
    assert {(*where, count) for where, count in left_out.items()} == set(NOT_RUN)
    # Nothing is shown in another way, which would not be seen here.
    kinds = "code|code-block|parsed-literal|sourcecode"
    directive = re.compile(rf"^ *\.\. (?:{kinds})::|^ *```\w|^(?! *\.\. ).*::$")
    for path in DOCUMENTS:
        lines = path.read_text(encoding="utf-8").splitlines()
        seen = sum(directive.search(line) is not None for line in lines)
        assert seen == sum(block.path == path for block in BLOCKS), path.name


def test_every_file_that_a_page_includes_is_run_by_a_test() -> None:
    found = 0
    for path in DOCUMENTS:
        for name in re.findall(r"literalinclude:: (\S+)", path.read_text(encoding="utf-8")):
            included = (path.parent / name).resolve()
            assert included.exists(), f"{path.name}: {name}"
            is_ours = {"tests", "example_project"} & set(included.relative_to(ROOT).parts)
            assert is_ours or any(f'"{included.name}"' in text for text in TESTS.values()), name
            found += 1
    assert found > 10


def test_every_command_of_make_that_is_shown_is_one() -> None:
    """What it would do, it does elsewhere: in the pipeline, and in tests of each target."""
    (readme,) = shown("README.md", "sh")
    (contributing,) = shown("CONTRIBUTING.md", "sh")
    (page,) = shown("docs/tutorial/browser.rst", "console")
    lines = [*readme.splitlines(), *contributing.splitlines(), *commands(page)]
    for line in lines:
        command, made = re.subn(r"(^|=\S+ )make ", r"\1make --dry-run ", line)
        if not made:
            assert line.split()[0] == ".ci/run"
            command = f"bash -n {line}"
        done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stderr}"


def test_every_command_of_manage_py_and_its_options_exist() -> None:
    known = get_commands()
    checked = set()
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for name, rest in re.findall(r"\b(accesspass_[a-z]+)((?: +-[^|>#&;`\n]*)*)", text):
            if name not in known:
                continue
            parser = load_command_class(str(known[name]), name).create_parser("manage.py", name)
            for option in re.findall(r"--[a-z-]+", rest):
                assert option in parser._option_string_actions, f"{path.name}: {name} {option}"
                checked.add(option)
    assert len(checked) > 5


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


def test_every_extra_that_is_named_is_one() -> None:
    extras = set(metadata("django-accesspass").get_all("Provides-Extra"))
    named = {
        extra
        for path in DOCUMENTS
        for extras_ in re.findall(r"accesspass\[([\w,]+)\]", path.read_text(encoding="utf-8"))
        for extra in extras_.split(",")
    }
    assert "openapi" in named
    assert named <= extras


def test_every_address_that_is_named_is_well_formed_and_safe() -> None:
    """Whether somebody answers there is not asked: tests talk to loopback alone."""
    found = set()
    for path in DOCUMENTS:
        for url in re.findall(r"\bhttps?://[^][\s()<>`'\",;]+", path.read_text(encoding="utf-8")):
            parts = urlsplit(url.rstrip(".:"))
            host = parts.hostname or ""
            assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z0-9]+|localhost", host), f"{path.name}: {url}"
            is_here = host == "localhost" or host.startswith("127.")
            assert parts.scheme == "https" or is_here, f"{path.name}: {url}"
            found.add(host)
    assert len(found) > 5


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


def test_no_hash_is_used_but_those_of_the_security_model() -> None:
    page = (ROOT / "docs" / "explanation" / "security.rst").read_text(encoding="utf-8")
    table = page.split("\nWhat tokens and hashes are made of\n")[1].split("\nTimes\n")[0]
    found: Counter[str] = Counter()
    for path in (ROOT / "accesspass").rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        found.update(re.findall(r"\b(?:md5|sha\d\w*|blake\w*|shake\w*)\b", code))
        assert set(re.findall(r"\bhashlib\.(\w+)", code)) <= {"sha256", "sha1"}, path
    assert set(found) == {"sha256", "sha1"}
    assert found["sha1"] == 1
    assert "SHA-1 names a script" in table
    token = tokens.mint(tokens.TokenType.ACCESS, bytes(16), 0)
    body = token.text.removeprefix("ap_at_")
    assert (f"{len(body)} characters", f"of {len(base64.urlsafe_b64decode(body))} bytes") == (
        "76 characters",
        "of 57 bytes",
    )
    assert f"{8 * len(token.secret)} bits" in table


def test_no_cell_of_a_table_becomes_a_list() -> None:
    assert r" - \+ a step" in rst([{"": "+ a step"}])
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"^ +(?:\* )?- [+*-] .*$", text, re.MULTILINE)
        assert not found, f"{path.name}: {found}"


def test_the_page_of_requirements_says_what_the_package_asks_for() -> None:
    page = (ROOT / "docs" / "reference" / "requirements.rst").read_text(encoding="utf-8")
    said = metadata("django-accesspass")
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(said.get_all("Classifier", [])))
    assert f"{', '.join(pythons[:-1])} and {pythons[-1]}, on Linux" in page
    for name, title in (("Django", "Django"), ("djangorestframework", "Django REST framework")):
        (least,) = re.findall(
            rf"^{name}>=([\d.]+)$", "\n".join(said.get_all("Requires-Dist", [])), re.M
        )
        assert f"   * - {title}\n     - {least} or newer\n" in page
    assert set(re.findall(r"``(\w+)``", page)) == set(said.get_all("Provides-Extra", []))


def test_the_pages_of_hooks_signals_and_the_cache_have_what_the_code_has() -> None:
    pages = {
        name: (ROOT / "docs" / "reference" / f"{name}.rst").read_text(encoding="utf-8")
        for name in ("hooks", "signals", "cache")
    }
    hooks = {name: x for name, x in vars(Hooks).items() if inspect.isfunction(x)}
    calls = {
        f"{name}({', '.join([*inspect.signature(x).parameters][1:])})" for name, x in hooks.items()
    }
    assert set(re.findall(r"^   \* - ``(\w+\(.*\))``$", pages["hooks"], re.MULTILINE)) == calls
    table, reasons = pages["signals"].split("\nWhy a session has ended\n")
    assert set(re.findall(r"^   \* - ``(\w+)``$", table, re.MULTILINE)) == set(signals.__all__)
    for name in vars(ReplicatedCache):
        if not name.startswith("_") and not hasattr(BaseCache, name):
            assert re.search(rf"``{name}\b|^{name}\(\)$", pages["cache"], re.MULTILINE), name
    code = "".join(x.read_text(encoding="utf-8") for x in (ROOT / "accesspass").rglob("*.py"))
    given = set(re.findall(r'(?:\breason(?:: str )?=|_end\([^)]*\), ) ?"(\w+)"', code))
    told = "".join(re.findall(r"^   \* - (``.*)$", reasons, re.MULTILINE))
    assert set(re.findall(r"``(\w+)``", told)) == given


def test_all_that_recurs_is_in_the_table_of_housekeeping() -> None:
    page = (ROOT / "docs" / "explanation" / "how-it-works.rst").read_text(encoding="utf-8")
    table = page.split("\nHousekeeping\n")[1].split("\nRefresh tokens\n")[0]
    rows = re.findall(r"\* - ``([\w ]+)``\n +- (.*)\n +- (.*)\n", table)
    seconds = {"s": 1, "min": 60, "h": 3600}

    def every(text: str) -> float:
        if option := re.fullmatch(r"``(\w+)``", text):
            found: float = getattr(conf, option[1])
            return found
        number, unit = text.split()
        return int(number) * seconds[unit]

    told = {name: (every(how_often), where == "one of all") for name, how_often, where in rows}
    assert told.pop("audit") == (3600.0, True)  # of accesspass.audit
    jobs = {job.name: (job.every(), job.leased) for job in background.JOBS if job.name != "audit"}
    assert told == jobs


def test_the_page_of_python_has_every_function_as_it_is() -> None:
    page = (ROOT / "docs" / "reference" / "python.rst").read_text(encoding="utf-8")
    for module in (sessions, accounts):
        section = page.split(f"``{module.__name__}``\n---")[1].split("\n---")[0]
        heads = "\n".join(re.findall(r"^   \* - (.*)$", section, re.MULTILINE)[1:])
        shown_calls = dict(re.findall(r"``(\w+)(\(.*?\))?``", heads))
        assert shown_calls.keys() == set(module.__all__)
        for name, call in shown_calls.items():
            found = getattr(module, name)
            assert bool(call) != inspect.isclass(found), name
            if call:
                signature = inspect.signature(found)
                plain = [x.replace(annotation=x.empty) for x in signature.parameters.values()]
                bare = signature.replace(
                    parameters=plain, return_annotation=inspect.Signature.empty
                )
                assert str(bare) == call, name


def test_every_path_and_field_on_the_page_of_python_exists() -> None:
    page = (ROOT / "docs" / "reference" / "python.rst").read_text(encoding="utf-8")
    _, names, fields = re.split(
        r"\nAuthentication and permissions\n|\n``accesspass.models``\n", page
    )
    found = 0
    for line in re.findall(r"^``accesspass.*$", names, re.MULTILINE):
        module = ""
        for path in re.findall(r"``([\w.]+)``", line):
            if not path.startswith("accesspass."):
                path = f"{module}.{path}"
            try:
                import_module(path)
            except ModuleNotFoundError:
                module, _dot, name = path.rpartition(".")
                assert name in import_module(module).__all__, path
            found += 1
    assert found > 10
    for model, said in re.findall(r"^``(\w+)``\n((?: +.*\n)+)", fields, re.MULTILINE):
        for name in re.findall(r"``(\w+)``", said.replace("``None``", "")):
            assert hasattr(getattr(models, model), name), f"{model}.{name}"
