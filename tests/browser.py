"""A Chromium, and the example project as ``make demo`` serves its page.

It needs playwright (the extra ``browser``) and a Chromium, by ``CHROMIUM`` or on the path; none is
downloaded.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.cluster import Cluster

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserType

__all__ = ["PageServer", "chromium", "launch", "start"]

_OPTIONS = ["--disable-gpu", "--no-first-run", "--disable-background-networking"]
_SETTINGS = """\
from cluster_settings import *

ACCESSPASS["REFRESH_COOKIE"] = "refresh"
ACCESSPASS["THROTTLES"] = dict.fromkeys(("login", "register", "mail"))
"""


class PageServer(Cluster):
    """The example project with three workers, its page, and its outbox.

    Args:
        store: ``ACCESSPASS_DEMO_STORE``, that of the example if empty.
        debug: ``DJANGO_DEBUG``.
        settings: more lines for its settings.
    """

    def __init__(self, store: str = "", *, debug: bool = True, settings: str = "") -> None:
        super().__init__(workers=3, store=store)
        (self.folder / "page_settings.py").write_text(_SETTINGS + settings)
        self.url = f"http://{self.host}:{self.port}"
        self.environment.update(
            ACCESSPASS_BASE_URL=self.url,
            DJANGO_DEBUG=str(int(debug)),
            DJANGO_SETTINGS_MODULE="page_settings",
        )


def chromium() -> str | None:
    """Return where a Chromium is, if there is one."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


def start(kind: BrowserType, *options: str) -> Browser:
    """Start the Chromium that there is, with these options besides."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    return kind.launch(executable_path=chromium(), args=[*_OPTIONS, *sandbox, *options])


@contextmanager
def launch() -> Iterator[Browser]:
    """Start the Chromium that there is, and playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = start(playwright.chromium)
        try:
            yield browser
        finally:
            browser.close()
