"""Takes the pictures of the admin, and of the example's page, that the documentation shows.

    python -m tests.screenshots

The example project is served by gunicorn with two workers, on a SQLite database in a folder of its
own. Its users, sessions and e-mails are made up. Of the nodes two are these workers, and two are
made up: one that has not heard of the present epoch, and one that is gone.

The page is that of ``make demo``: three workers, before and after "Revoke everywhere".
"""

from __future__ import annotations

import os
import sys
import uuid
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.browser import PageServer, chromium, launch
from tests.cluster import Cluster
from tests.servers import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
LARGEST = 150_000  # bytes
PASSWORD = "correct horse battery staple"
PAGES = {
    "admin-nodes": "/admin/accesspass/node/",
    "admin-sessions": "/admin/accesspass/session/",
    "admin-mails": "/admin/accesspass/mailrequest/",
}
_SERVED = """\
import socket
socket.gethostname = lambda: "web-1"

from django.contrib.staticfiles.handlers import StaticFilesHandler
from example_project.wsgi import application as project

application = StaticFilesHandler(project)
"""
_FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
_IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15"
    " (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1"
)
_CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36"
    " (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
)
# Who, with what, from where (RFC 5737), how many minutes ago, and why it ended.
_SESSIONS = [
    ("ann", _FIREFOX, "192.0.2.10", 3, ""),
    ("ann", _IPHONE, "198.51.100.7", 190, ""),
    ("bob", _CHROME, "203.0.113.45", 25, ""),
    ("bob", _IPHONE, "203.0.113.45", 1_500, "logout"),
    ("carol", _FIREFOX, "192.0.2.200", 75, ""),
    ("carol", _CHROME, "198.51.100.99", 2_900, "refresh_token_reused"),
    ("dave", _CHROME, "192.0.2.31", 4_400, "password_changed"),
]


class Site(Cluster):
    """The example project with its static files, on a host of a made-up name."""

    application = "served:application"

    def __init__(self) -> None:
        super().__init__(workers=2)
        (self.folder / "served.py").write_text(_SERVED)


def main() -> int:
    if chromium() is None:
        sys.stderr.write("There is no Chromium: set CHROMIUM, or install one.\n")
        return 1
    with Site() as site:
        _use(site)
        token = _make_up_data()
        _let_both_workers_report(site, token)
        _make_up_nodes()
        with launch() as browser:
            _take(f"http://{site.host}:{site.port}", browser)
            with PageServer() as pages:
                _take_page(pages, browser)
    return 0


def _use(site: Site) -> None:
    """Make this process one of the project's."""
    import django

    os.environ.update(site.environment)
    sys.path.insert(0, str(site.folder))
    django.setup()


def _make_up_data() -> str:
    """Insert users, sessions and e-mails; return an access token."""
    from django.contrib.auth import get_user_model
    from django.db.models.functions import Now

    from accesspass import mail, sessions
    from accesspass.devices import device_name
    from accesspass.models import MailRequest, Session

    users: Any = get_user_model()._default_manager
    users.create_superuser("root", "root@example.com", PASSWORD)
    for name in sorted({name for name, *_ in _SESSIONS}):
        users.create_user(name, f"{name}@example.com", PASSWORD)
    for name, agent, ip, minutes, reason in _SESSIONS:
        pair = sessions.start(users.get(username=name), name=device_name(agent))
        if reason:
            sessions.revoke(pair.session_id, reason=reason)
        else:
            token = pair.access_token
        begun = Now() - timedelta(minutes=minutes)
        row = Session.objects.filter(pk=pair.session_id)
        row.update(created_at=begun, last_used_at=begun, ip=ip, user_agent=agent)
    later = Now() + timedelta(hours=1)
    for name, fields in {
        "ann": {"sent_at": Now(), "attempts": 1},
        "bob": {"attempts": 3, "error": "SMTPDataError 451", "lease_until": later},
        "carol": {"failed_at": Now(), "attempts": 10, "error": "SMTPRecipientsRefused"},
    }.items():
        mail.ask("password_reset", f"{name}@example.com")
        MailRequest.objects.filter(identifier=f"{name}@example.com").update(**fields)
    mail.notify("password_changed", users.get(username="dave"))
    MailRequest.objects.filter(sent_at=None, attempts=0).update(sent_at=Now(), attempts=1)
    return token


def _let_both_workers_report(site: Site, token: str) -> None:
    from accesspass.models import Node

    def have_reported() -> bool:
        site.at_once(6, "GET", "/auth/check/", token=token)
        return Node.objects.count() == site.workers

    wait_until(have_reported, 30)


def _make_up_nodes() -> None:
    from django.db.models.functions import Now

    from accesspass.models import Node

    node = Node.objects.order_by("reported_at")[0]
    behind = {"epoch": "5bd1a7c04e6f2098", "fresh": False, "staleness": 21.4}
    for number, (minutes, fields) in enumerate([(0.2, behind), (15, {})], 1):
        row = Node.objects.get(pk=node.pk)
        row.pk, row.pid = uuid.uuid4(), node.pid + 7 * number
        row.save(force_insert=True)
        at = Now() - timedelta(minutes=minutes)
        Node.objects.filter(pk=row.pk).update(reported_at=at, **fields)


def _take(address: str, browser: Browser) -> None:
    page = browser.new_page(
        viewport={"width": 1600, "height": 480}, color_scheme="light", locale="en-US"
    )
    # The admin's own memory of whether its navigation is shown.
    page.add_init_script("localStorage.setItem('django.admin.navSidebarIsOpen', 'false')")
    page.goto(f"{address}/admin/")
    page.fill("#id_username", "root")
    page.fill("#id_password", PASSWORD)
    page.click("[type=submit]")
    page.wait_for_selector("#site-name")
    for name, path in PAGES.items():
        page.goto(address + path)
        _save(page, name)


def _take_page(site: PageServer, browser: Browser) -> None:
    person = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}
    token = site.once("POST", "/auth/register/", body=person).body["access_token"]
    site.all_workers("GET", "/auth/sessions/", token=token)  # the first one loads the project
    for name, scheme, width, agent in (
        ("page", "light", 1200, _FIREFOX),
        ("page-dark", "dark", 1200, _CHROME),
        ("page-narrow", "light", 360, _IPHONE),
    ):
        page = browser.new_page(
            base_url=site.url,
            viewport={"width": width, "height": 740},
            color_scheme=scheme,
            locale="en-GB",
            user_agent=agent,
        )
        page.goto("/")
        page.get_by_label("Username or e-mail address").first.fill("ada")
        page.get_by_label("Password", exact=True).first.fill(PASSWORD)
        page.locator("form:visible button").click()
        states = page.get_by_role("list", name="Workers").get_by_role("listitem")
        states.filter(has_text="accepts").nth(site.workers - 1).wait_for()
        page.wait_for_timeout(6_000)  # for the strips to fill
        if name != "page":
            page.get_by_role("button", name="Revoke everywhere").click()
            page.get_by_text("All 3 workers refuse.").wait_for()
            page.wait_for_timeout(2_000)
            page.mouse.move(0, 0)
            page.evaluate("scrollTo(0, 0)")  # else the message covers what it has followed
        _save(page, name)
        page.close()


def _save(page: Page, name: str) -> None:
    picture = IMAGES / f"{name}.png"
    page.screenshot(path=picture, full_page=True)
    size = picture.stat().st_size
    sys.stdout.write(f"{picture.relative_to(ROOT)}  {size:,} bytes\n")
    assert size <= LARGEST, f"{name} is too large for a page"


if __name__ == "__main__":
    sys.exit(main())
