"""The example's page in a real Chromium, as a person would use it, over three workers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests import browser as installed
from tests.browser import PageServer
from tests.servers import require_postgresql, require_valkey, shared_postgresql, shared_valkey

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytest.importorskip("playwright", reason="playwright is not installed (the extra browser)")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(installed.chromium() is None, reason="there is no Chromium"),
]
ROOT = Path(__file__).resolve().parent.parent
PASSWORD = "correct horse battery staple"
NARROW = {"width": 360, "height": 740}
# What a text's contrast with its background is (WCAG 2.2, 1.4.3), for each text that is shown.
LOW_CONTRAST = """() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (color) => {
    const [r, g, b] = color.slice(0, 3).map((x) => x / 255)
      .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = rgb(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")]
    .filter((node) => node.checkVisibility() && !node.matches(".skip, script, option") &&
      [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()))
    .map((node) => {
      const pair = [light(rgb(getComputedStyle(node).color)), light(behind(node))];
      return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), node.textContent.trim()];
    })
    .filter(([ratio]) => ratio < 4.5);
}"""


@pytest.fixture(scope="module")
def site() -> Iterator[PageServer]:
    with PageServer() as site:
        yield site


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with installed.launch() as browser:
        yield browser


@pytest.fixture
def page(site: PageServer, chromium: Browser) -> Iterator[Page]:
    """A page of a browser without cookies; nothing may go wrong in its program."""
    with chromium.new_context(base_url=site.url, viewport=NARROW) as context:
        page = context.new_page()
        faults: list[Any] = []
        page.on("pageerror", lambda error: faults.append(error))
        page.on("console", lambda said: "Policy" in said.text and faults.append(said.text))
        page.set_default_timeout(20_000)
        yield page
        assert faults == []


def form(page: Page, button: str, **fields: str) -> None:
    """Fill in what is labelled so in the form with this button, and press it."""
    shown = page.locator("form:visible").filter(
        has=page.get_by_role("button", name=button, exact=True)
    )
    for label, text in fields.items():
        shown.get_by_label(label.replace("_", " "), exact=True).fill(text)
    shown.get_by_role("button", name=button, exact=True).click()


def heading(page: Page, name: str) -> None:
    page.get_by_role("heading", name=name, exact=True, level=1).wait_for()


def says(page: Page, text: str) -> None:
    page.get_by_role("status").filter(has_text=text).first.wait_for()


def register(page: Page, name: str) -> None:
    page.goto("/register")
    labels = {"E-mail address": f"{name}@example.org", "Password again": PASSWORD}
    form(page, "Register", Username=name, Password=PASSWORD, **labels)
    heading(page, "Account")


def sign_in(page: Page, name: str, password: str = PASSWORD) -> None:
    page.goto("/")
    form(page, "Sign in", **{"Username or e-mail address": name, "Password": password})


def follow(page: Page, subject: str, to: str) -> None:
    """Open the link in the e-mail, as the outbox shows it."""
    page.goto("/outbox")
    mail = page.get_by_role("article").filter(has_text=subject).filter(has_text=to).first
    mail.get_by_role("link").click()


def devices(page: Page) -> Locator:
    return page.get_by_role("list", name="Devices").get_by_role("listitem")


def workers(page: Page, state: str) -> Locator:
    return page.get_by_role("list", name="Workers").get_by_role("listitem").filter(has_text=state)


def test_whoever_registers_is_signed_in_and_stays_so_over_a_reload(page: Page) -> None:
    register(page, "ada")
    first = page.get_by_role("list", name="API calls").get_by_role("listitem")
    called = first.filter(has_text="/auth/register/")
    assert re.search(r"201\s*\d+ SQL · [\d,]+ µs · worker \d+", called.inner_text())
    page.reload()
    heading(page, "Account")
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [
        0,
        0,
        "",
    ]
    page.get_by_role("button", name="Sign out").click()
    heading(page, "Sign in")
    page.reload()
    heading(page, "Sign in")


def test_no_secret_is_shown_in_the_calls(page: Page) -> None:
    register(page, "bea")
    text = page.locator("#calls").text_content()
    assert text is not None
    assert "ap_at_…" in text
    assert PASSWORD not in text
    assert not re.search(r"ap_\w\w_[\w-]{20}", text)


def test_an_address_is_confirmed_and_the_key_leaves_the_address_bar(page: Page) -> None:
    register(page, "cleo")
    follow(page, "Confirm your e-mail address", "cleo@example.org")
    heading(page, "Confirm your e-mail address")
    assert page.evaluate("location.href").endswith("/confirm")
    form(page, "Confirm the address")
    says(page, "Your e-mail address is confirmed.")
    page.get_by_text("confirmed", exact=True).wait_for()
    page.goto("/confirm")
    heading(page, "This link has no key")


def test_a_forgotten_password_is_reset_and_a_username_sent(page: Page) -> None:
    register(page, "dora")
    page.get_by_role("button", name="Sign out").click()
    heading(page, "Sign in")
    page.get_by_role("link", name="Forgot the password or the username?").click()
    form(page, "Send the username", **{"E-mail address": "dora@example.org"})
    says(page, "If there is such an account, an e-mail is on its way.")
    form(page, "Send a link", **{"Username or e-mail address": "dora"})
    follow(page, "password", "dora@example.org")
    again = {"New password": "a quite other password", "New password again": "another one, alas"}
    form(page, "Set the password", **again)
    field = page.locator("section:visible").get_by_label("New password again", exact=True)
    page.wait_for_function("document.querySelector('[aria-invalid=true]') !== null")
    assert field.get_attribute("aria-describedby")
    assert field.evaluate("field => field === document.activeElement")
    again["New password again"] = again["New password"]
    form(page, "Set the password", **again)
    heading(page, "Sign in")
    form(page, "Sign in", **{"Username or e-mail address": "DORA", "Password": PASSWORD})
    page.get_by_role("alert").wait_for()
    sign_in(page, "dora", again["New password"])
    heading(page, "Account")
    page.goto("/outbox")
    page.get_by_role("article").filter(has_text="sername").first.wait_for()


def test_another_device_is_seen_and_revoked(page: Page, site: PageServer) -> None:
    register(page, "emmy")
    body = {"username": "emmy", "password": PASSWORD}
    assert site.once("POST", "/auth/login/", body=body).status == 200
    page.reload()
    devices(page).nth(1).wait_for()
    page.get_by_role("button", name="Revoke Unknown device").click()
    says(page, "Unknown device is signed out.")
    devices(page).nth(1).wait_for(state="detached")
    assert devices(page).count() == 1


def test_a_password_and_an_address_are_changed_and_the_account_deleted(page: Page) -> None:
    register(page, "flora")
    page.locator("summary", has_text="Password").click()
    new = {"Current password": PASSWORD, "New password": PASSWORD[::-1]}
    form(page, "Change the password", **new, **{"New password again": PASSWORD[::-1]})
    says(page, "The password is changed")
    page.locator("summary", has_text="E-mail address").click()
    asked = {"New e-mail address": "flora@example.com", "Current password": PASSWORD}
    form(page, "Send a link", **asked)
    page.locator(".error", has_text=re.compile(r"\w")).wait_for()
    form(page, "Send a link", **{**asked, "Current password": PASSWORD[::-1]})
    says(page, "A link is on its way to the new address.")
    follow(page, "", "flora@example.com")
    form(page, "Confirm the new address")
    says(page, "The new e-mail address is yours.")
    page.get_by_text("flora@example.com", exact=True).wait_for()
    page.locator("summary", has_text="Delete the account").click()
    form(page, "Delete the account", **{"Current password": PASSWORD[::-1]})
    says(page, "The account is deleted.")
    sign_in(page, "flora", PASSWORD[::-1])
    page.get_by_role("alert").wait_for()


def revoke_everywhere(page: Page) -> str:
    workers(page, "accepts").nth(2).wait_for()
    page.get_by_role("button", name="Revoke everywhere").click()
    workers(page, "refuses").nth(2).wait_for()
    verdict = page.get_by_role("status").filter(has_text="All 3 workers refuse.")
    verdict.wait_for()
    return verdict.inner_text()


def test_every_worker_is_seen_to_refuse_and_none_accepts_after_it(page: Page) -> None:
    register(page, "grace")
    assert revoke_everywhere(page).endswith("Requests accepted since: none.")
    assert "0 SQL" in workers(page, "refuses").first.inner_text()
    page.get_by_role("link", name="Sign in again").click()
    heading(page, "Sign in")


def test_a_session_that_was_ended_elsewhere_ends_here(page: Page, site: PageServer) -> None:
    register(page, "hedy")
    other = site.once("POST", "/auth/login/", body={"username": "hedy", "password": PASSWORD})
    site.once("POST", "/auth/logout/all/", token=other.body["access_token"])
    says(page, "This session has ended.")
    heading(page, "Sign in")


def test_the_page_is_used_by_the_keyboard_alone(page: Page) -> None:
    register(page, "ida")
    page.get_by_role("button", name="Sign out").click()
    heading(page, "Sign in")
    assert page.evaluate("document.activeElement.textContent") == "Sign in"  # and is read out
    page.keyboard.press("Tab")
    page.keyboard.type("ida")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    heading(page, "Account")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_and_nothing_is_wider_than_a_phone(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)

    def look() -> None:
        assert page.evaluate(LOW_CONTRAST) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]

    page.goto("/forgot")
    heading(page, "Forgotten")
    look()
    register(page, f"jane-{scheme}")
    for summary in page.locator("summary:visible").all():
        summary.click()
    look()
    revoke_everywhere(page)
    look()
    page.goto("/outbox")
    page.get_by_role("article").first.wait_for()
    look()


def test_every_field_and_button_has_a_name(page: Page) -> None:
    register(page, "kay")
    nameless = """() => [...document.querySelectorAll("input, button, a, summary")].filter((node) =>
        !(node.labels?.[0]?.textContent.trim() || node.textContent.trim() || node.ariaLabel))"""
    assert page.evaluate(f"({nameless})().length") == 0


@pytest.mark.parametrize("store", ["postgresql", "valkey"])
def test_one_variable_chooses_the_store_and_without_debug_no_mail_is_shown(store: str) -> None:
    if store == "valkey":
        require_valkey()
        url = shared_valkey().url()
    else:
        require_postgresql()
        url = shared_postgresql().create_database("page")
    with PageServer(url, debug=False) as site:
        with urlopen(site.url) as answer:
            assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
        with urlopen(f"{site.url}/static/example_project/page.js") as answer:
            assert "javascript" in answer.headers["Content-Type"]
        for path in ("/outbox", "/outbox/mails/"):
            with pytest.raises(HTTPError, match="404"):
                urlopen(site.url + path)
        body = {"username": "lea", "email": "lea@example.org", "password": PASSWORD}
        token = site.once("POST", "/auth/register/", body=body).body["access_token"]
        found = site.all_workers("GET", "/hello/", token=token)
        assert {answer.status for answer in found.values()} == {200}
        command = [sys.executable, "manage.py", "accesspass_status", "--json"]
        status = subprocess.run(command, env=site.environment, cwd=ROOT, capture_output=True)
        engine = json.loads(status.stdout)
        assert ("postgresql" if store == "postgresql" else "redis") in json.dumps(engine).lower()
