"""Extracts, merges and compiles the translations, without the programs of gettext.

    python -m tests.messages

Every string of the package is brought into each ``django.po``; what is translated stays, what is no
longer used goes, nothing is guessed. Each ``django.mo`` is compiled from it. Both have the same
bytes wherever and whenever they are made: no dates, no line numbers, no version of a tool. The exit
status is 1 if a translation is missing.

Babel reads Python. Templates are turned into something like Python first, by what Django's own
``makemessages`` does that with; the extractor that Babel's users know for them is no longer kept.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from babel import Locale
from babel.messages.catalog import Catalog, Message
from babel.messages.extract import DEFAULT_KEYWORDS, extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from django.utils.translation.template import templatize

__all__ = [
    "FOLDER",
    "LOCALES",
    "compiled",
    "extracted",
    "merged",
    "read",
    "untranslated",
    "written",
]

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "accesspass" / "locale"
#: Named as Django names their folders. English, the language of the code, is its own translation.
LOCALES = ("ar", "de", "en", "es", "fr", "it", "ja", "nl", "pl", "pt_BR", "ru", "tr", "zh_Hans")
# How many plural forms there are, and which is for n. Not Babel's, which change with its version.
_PLURALS = {
    "ar": (
        6,
        "n==0 ? 0 : n==1 ? 1 : n==2 ? 2 : n%100>=3 && n%100<=10 ? 3 : n%100>=11 && n%100<=99 ? 4"
        " : 5",
    ),
    "fr": (2, "(n > 1)"),
    "ja": (1, "0"),
    "pl": (3, "(n==1 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2)"),
    "pt_BR": (2, "(n > 1)"),
    "ru": (
        3,
        "(n%10==1 && n%100!=11 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2)",
    ),
    "tr": (2, "(n > 1)"),
    "zh_Hans": (1, "0"),
}
_LIKE_ENGLISH = (2, "(n != 1)")
_KEYWORDS = DEFAULT_KEYWORDS | {f"{name}_lazy": x for name, x in DEFAULT_KEYWORDS.items()}


class _Catalog(Catalog):
    """A catalogue with a header in which nothing changes by itself."""

    def __init__(self, locale: str) -> None:
        name = Locale.parse(locale).english_name
        comment = f"# {name} translations of AccessPass."
        super().__init__(locale, header_comment=comment, fuzzy=False)
        self._plurals = _PLURALS.get(locale, _LIKE_ENGLISH)

    @property
    def num_plurals(self) -> int:
        return self._plurals[0]

    @property
    def plural_expr(self) -> str:
        return self._plurals[1]

    @property  # type: ignore[override]
    def mime_headers(self) -> list[tuple[str, str]]:
        return [
            ("Language", self.locale_identifier),
            ("MIME-Version", "1.0"),
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Transfer-Encoding", "8bit"),
            ("Plural-Forms", f"{self.plural_forms}\n"),  # the header ends as a line does
        ]


def extracted() -> Catalog:
    """Return every string of the package, untranslated."""
    found = Catalog()
    for path in sorted((ROOT / "accesspass").rglob("*")):
        if path.suffix == ".py":
            source = path.read_bytes()
        elif "templates" in path.parts and path.is_file():
            code = templatize(path.read_text(encoding="utf-8"), origin=str(path))
            # What stands around the strings is no Python, least of all by how it is indented.
            source = "\n".join(map(str.lstrip, code.splitlines())).encode()
        else:
            continue
        place = path.relative_to(ROOT).as_posix()
        for line, id, comments, context in extract("python", io.BytesIO(source), _KEYWORDS):
            found.add(
                id, locations=[(place, line)], auto_comments=comments, context=context, lineno=line
            )
    return found


def read(locale: str) -> Catalog:
    """Return the catalogue of a locale as its file has it; an empty one if there is no file."""
    path = _folder(locale) / "django.po"
    with io.BytesIO(path.read_bytes() if path.exists() else b"") as file:
        return read_po(file, locale)


def merged(found: Catalog, old: Catalog, locale: str) -> Catalog:
    """Return what was found with the translations of `old`, where it has any."""
    new = _Catalog(locale)
    for message in found:
        if message.id:
            known = old.get(message.id, message.context)
            new.add(
                message.id,
                message.id if locale == "en" else _kept(message, known),
                locations=message.locations,
                auto_comments=message.auto_comments,
                user_comments=known.user_comments if known else (),
                context=message.context,
            )
    return new


def _kept(message: Message, known: Message | None) -> str | tuple[str, ...] | None:
    if known is None or known.fuzzy or known.pluralizable != message.pluralizable:
        return None
    return known.string


def written(catalog: Catalog) -> bytes:
    """Return the bytes of the .po file."""
    file = io.BytesIO()
    # Not wrapped: where lines end would depend on the version of Babel.
    write_po(file, catalog, width=0, include_lineno=False, sort_output=True, ignore_obsolete=True)
    return file.getvalue()


def compiled(catalog: Catalog) -> bytes:
    """Return the bytes of the .mo file."""
    file = io.BytesIO()
    write_mo(file, catalog)
    return file.getvalue()


def untranslated(catalog: Catalog) -> list[Message]:
    """Return the messages of which a translation, or one of its plural forms, is missing."""
    return [message for message in catalog if message.id and not _is_complete(message, catalog)]


def _is_complete(message: Message, catalog: Catalog) -> bool:
    if message.pluralizable:
        return len(message.string) == catalog.num_plurals and all(message.string)
    return bool(message.string)


def _folder(locale: str) -> Path:
    return FOLDER / locale / "LC_MESSAGES"


def main() -> int:
    found, missing = extracted(), 0
    for locale in LOCALES:
        catalog = merged(found, read(locale), locale)
        folder = _folder(locale)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "django.po").write_bytes(written(catalog))
        (folder / "django.mo").write_bytes(compiled(catalog))
        for message in untranslated(catalog):
            print(f"{locale}: not translated: {message.id!r}")
            missing += 1
    print(f"{len(found)} strings in {len(LOCALES)} languages, {missing} translations missing")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
