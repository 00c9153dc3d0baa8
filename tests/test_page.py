"""The example's page in a real Chromium, as a person would use it, over three workers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests import browser as installed
from tests.browser import PageServer
from tests.documents import shown
from tests.servers import (
    require_postgresql,
    require_valkey,
    shared_postgresql,
    shared_valkey,
    wait_until,
)

if TYPE_CHECKING:
    from playwright.sync_api import (
        Browser,
        BrowserContext,
        ConsoleMessage,
        Locator,
        Page,
        Request,
        Route,
        ViewportSize,
    )

pytest.importorskip("playwright", reason="playwright is not installed (the extra browser)")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(installed.chromium() is None, reason="there is no Chromium"),
]
ROOT = Path(__file__).resolve().parent.parent
PASSWORD = "correct horse battery staple"
NARROW: ViewportSize = {
    "width": 320,
    "height": 740,
}  # what WCAG 2.2, 1.4.10, asks for, and 400 % zoom
STRICT = """
ACCESSPASS["ACCESS_TOKEN_LIFETIME"] = 2
ACCESSPASS["THROTTLES"]["login"] = {"account": "3/h"}
"""
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


@pytest.fixture(scope="module")
def strict() -> Iterator[PageServer]:
    """A server whose access tokens live for 2 seconds, and which bears few wrong passwords."""
    with PageServer(settings=STRICT) as site:
        yield site


@contextmanager
def window(chromium: Browser, site: PageServer) -> Iterator[BrowserContext]:
    """A browser without cookies; nothing may go wrong in its pages, and no secret into a URL."""
    faults: list[Any] = []

    def opened(page: Page) -> None:
        page.on("pageerror", lambda error: faults.append(error))
        page.on("console", printed)

    def printed(message: ConsoleMessage) -> None:
        if "Policy" in message.text:
            faults.append(message.text)

    def asked(request: Request) -> None:
        if re.search(r"ap_\w\w_", request.url.partition("#")[0]):
            faults.append(request.url)

    with chromium.new_context(base_url=site.url, viewport=NARROW) as context:
        context.set_default_timeout(20_000)
        context.on("page", opened)
        context.on("request", asked)
        yield context
        assert faults == []


@pytest.fixture
def page(site: PageServer, chromium: Browser) -> Iterator[Page]:
    with window(chromium, site) as context:
        yield context.new_page()


@pytest.fixture
def strict_page(strict: PageServer, chromium: Browser) -> Iterator[Page]:
    with window(chromium, strict) as context:
        yield context.new_page()


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


def call(page: Page, what: str) -> Locator:
    """The calls of this kind that the page lists, the last first."""
    return page.get_by_role("list", name="API calls").get_by_role("listitem").filter(has_text=what)


def linked(site: PageServer, subject: str, to: str) -> str:
    """The link in the newest e-mail with this subject to this address, as soon as it is sent."""

    def found() -> str | None:
        with urlopen(f"{site.url}/outbox/mails/") as answer:
            for mail in json.load(answer)["mails"]:
                if subject in mail["subject"] and to in mail["to"]:
                    return str(re.search(r"https?://\S+", mail["text"])[0])  # type: ignore[index]
        return None

    link: str = wait_until(found, timeout=20)
    return link


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


def test_an_e_mail_that_comes_takes_no_focus_away(page: Page, site: PageServer) -> None:
    register(page, "cora")
    page.goto("/outbox")
    mails = page.get_by_role("article")
    mails.filter(has_text="cora").get_by_role("link").focus()
    focused = page.evaluate("document.activeElement.href")
    assert site.once("POST", "/auth/password/reset/", body={"username": "cora"}).status == 202
    mails.filter(has_text="cora").nth(1).wait_for()
    assert mails.first.get_by_role("heading").inner_text().startswith("Choose a new password")
    assert page.evaluate("document.activeElement.href") == focused


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
    devices(page).first.wait_for()
    body = {"username": "emmy", "password": PASSWORD}
    assert site.once("POST", "/auth/login/", body=body).status == 200
    page.get_by_role("button", name="Check again").click()
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
    page.get_by_role("button", name="Revoke everywhere").dblclick()
    workers(page, "refuses").nth(2).wait_for()
    verdict = page.get_by_role("status").filter(has_text="All 3 workers refuse.")
    verdict.wait_for()
    return verdict.inner_text()


def look_around(page: Page, name: str, look: Callable[[], None]) -> None:
    """Look at the page with all that it shows to somebody new, in each of its states."""
    page.goto("/forgot")
    heading(page, "Forgotten")
    look()
    register(page, name)
    for summary in page.locator("summary:visible").all():
        summary.click()
    look()
    revoke_everywhere(page)
    look()
    page.goto("/outbox")
    page.get_by_role("article").first.wait_for()
    look()


def test_every_worker_is_seen_to_refuse_and_none_accepts_after_it(page: Page) -> None:
    register(page, "grace")
    assert revoke_everywhere(page).endswith("Requests accepted since: none.")
    assert "0 SQL" in workers(page, "refuses").first.inner_text()
    assert call(page, "POST /auth/logout/all/").count() == 1
    page.get_by_role("navigation").get_by_role("link", name="Sign in").click()
    heading(page, "Sign in")


def test_workers_that_refuse_before_the_acknowledgement_are_told_of_in_order(page: Page) -> None:
    page.add_init_script(
        """(() => {
          const real = fetch;
          window.fetch = async (path, options) => {
            const answer = await real(path, options);
            const slow = path.endsWith("/logout/all/");
            if (slow) await new Promise((resolve) => setTimeout(resolve, 3000));
            return answer;
          };
        })()"""
    )
    register(page, "gwen")
    revoke_everywhere(page)
    told = page.locator("#timeline b").all_inner_texts()
    moments = [int(moment.removesuffix(" ms")) for moment in told]
    assert len(moments) == 4
    assert moments[0] < 0
    assert moments == sorted(moments)


def test_what_is_selected_in_a_card_of_a_worker_stays_so(page: Page) -> None:
    register(page, "gail")
    workers(page, "accepts").nth(2).wait_for()
    selected = page.evaluate(
        "getSelection().selectAllChildren(document.querySelector('#workers b')) ?? "
        "getSelection().toString()"
    )
    for _ in range(9):  # two rounds of questions
        page.wait_for_event("requestfinished", lambda x: x.url.endswith("/hello/"))
    assert page.evaluate("getSelection().toString()") == selected != ""


def test_a_session_that_was_ended_elsewhere_ends_here(page: Page, site: PageServer) -> None:
    register(page, "hedy")
    other = site.once("POST", "/auth/login/", body={"username": "hedy", "password": PASSWORD})
    site.once("POST", "/auth/logout/all/", token=other.body["access_token"])
    says(page, "This session has ended.")
    heading(page, "Sign in")


def test_an_expired_access_token_is_replaced_and_nobody_notices(strict_page: Page) -> None:
    register(strict_page, "juno")
    other = strict_page.context.new_page()
    other.goto("/outbox")
    call(strict_page, "POST /auth/refresh/").nth(1).wait_for()  # the first was refused
    says(strict_page, "Welcome.")
    other.get_by_role("link", name="Account").click()
    heading(other, "Account")
    strict_page.locator("summary", has_text="Password").click()
    new = {"New password": PASSWORD[::-1], "New password again": PASSWORD[::-1]}
    form(strict_page, "Change the password", **{"Current password": PASSWORD}, **new)
    says(strict_page, "The password is changed")
    assert devices(strict_page).count() == 1


def test_tabs_share_one_access_token_and_a_sign_out(page: Page, site: PageServer) -> None:
    asked: list[str] = []
    page.context.on("request", lambda request: asked.append(request.url))
    register(page, "kim")
    others = [page.context.new_page() for _ in range(5)]  # a session has four access tokens
    for other in others:
        other.goto("/")
        heading(other, "Account")
    tabs = [page, *others]
    for tab in tabs:
        for _ in range(2):
            tab.wait_for_event("requestfinished", lambda x: x.url.endswith("/hello/"))
    assert asked.count(f"{site.url}/auth/refresh/") == len(tabs)
    others[-1].get_by_role("button", name="Sign out").click()
    for tab in tabs:
        heading(tab, "Sign in")
        says(tab, "You are signed out.")
    register(others[0], "kit")
    for tab in tabs[2:]:
        heading(tab, "Account")
        says(tab, "kit has signed in in another tab.")


@pytest.mark.parametrize("told", [True, False], ids=["told", "not-told"])
def test_another_user_in_another_tab_is_never_taken_for_the_first(
    strict_page: Page, told: bool
) -> None:
    first, second = ("lou", "max") if told else ("luc", "mia")
    if not told:  # by a browser that had frozen the tab
        strict_page.context.add_init_script("BroadcastChannel.prototype.postMessage = () => {}")
    register(strict_page, first)
    strict_page.locator("summary", has_text="Delete the account").click()
    typed = strict_page.locator("form[data-form=delete-account] input")
    typed.fill("for the first alone")
    register(strict_page.context.new_page(), second)
    says(strict_page, f"{second} has signed in in another tab.")
    strict_page.get_by_role("banner").get_by_text(second).wait_for()
    assert typed.input_value() == ""


def test_what_one_user_asks_for_is_not_done_as_another(strict_page: Page) -> None:
    strict_page.context.add_init_script("BroadcastChannel.prototype.postMessage = () => {}")
    register(strict_page, "nan")
    strict_page.locator("summary", has_text="Delete the account").click()
    strict_page.route("**/hello/", lambda route: route.fulfill(json={}))  # so that it notices late
    other = strict_page.context.new_page()
    register(other, "ned")
    call(other, "POST /auth/refresh/").nth(1).wait_for()  # nan's token has expired by then
    form(strict_page, "Delete the account", **{"Current password": PASSWORD})
    strict_page.get_by_role("alert").filter(has_text="Another user has signed in").wait_for()
    assert call(strict_page, "POST /auth/account/delete/").count() == 1  # the refused one


def test_a_lost_server_is_told_of_and_ends_no_session(
    strict_page: Page, strict: PageServer
) -> None:
    register(strict_page, "oda")
    strict.kill()
    says(strict_page, "The server does not answer.")
    strict_page.get_by_role("button", name="Check again").click()
    strict_page.get_by_role("status").filter(has_text="does not answer").nth(1).wait_for()
    strict.start()
    says(strict_page, "The server answers again.")
    statuses = strict_page.get_by_role("status")
    assert statuses.filter(has_text="does not answer").count() == 0  # it does now
    workers(strict_page, "accepts").nth(2).wait_for()
    heading(strict_page, "Account")


def test_a_server_that_cannot_tell_who_one_is_says_so_and_is_asked_again(page: Page) -> None:
    def unavailable(route: Route) -> None:
        body = {"detail": "The service is unavailable.", "code": "unavailable"}
        route.fulfill(status=503, headers={"Retry-After": "150"}, json=body)

    register(page, "pia")
    page.route("**/auth/refresh/", unavailable)
    page.reload()
    says(page, "The service is unavailable. (3 minutes)")
    page.unroute("**/auth/refresh/")
    heading(page, "Account")


def test_a_slow_server_is_waited_for_without_buttons_that_do_nothing(page: Page) -> None:
    held: list[Route] = []
    page.route("**/auth/refresh/", lambda route: held.append(route))
    page.goto("/")
    page.get_by_text("Asking the server who you are").wait_for()
    assert page.get_by_role("button").count() == 0
    assert page.get_by_role("navigation").get_by_role("link").all_inner_texts() == ["Outbox"]
    held[0].continue_()
    heading(page, "Sign in")
    assert page.get_by_text("Asking the server").count() == 0


def test_a_throttled_sign_in_says_how_long_to_wait(strict_page: Page) -> None:
    for _ in range(4):
        sign_in(strict_page, "nobody", "wrong")
        strict_page.get_by_role("alert").wait_for()
    refused = strict_page.get_by_role("alert").inner_text()
    assert re.search(r"Too many attempts.*\(\d+ minutes\)", refused)


def test_tabs_that_refresh_as_the_guide_says_share_the_newest_token(
    page: Page, site: PageServer
) -> None:
    _one, script = shown("docs/how-to/browsers.rst", "javascript")
    register(page, "uma")
    page.close()
    tabs = [page.context.new_page() for _ in range(3)]
    for tab in tabs:
        tab.goto("/auth/check/")  # any page of the same origin, without a script of its own
        tab.evaluate(f"() => {{ {script}; window.renew = renew; window.access = () => access; }}")
    for tab in tabs:
        tab.evaluate("() => { window.renewed = renew(null); }")
    for tab in tabs:
        tab.evaluate("() => window.renewed")
    wait_until(lambda: len({tab.evaluate("access()") for tab in tabs}) == 1)
    used = tabs[0].evaluate(
        """async () => (await fetch("/auth/check/", {
             headers: {Authorization: `Bearer ${access()}`},
           })).status"""
    )
    assert used == 200


def test_a_second_click_does_nothing_while_the_first_is_under_way(page: Page) -> None:
    page.goto("/register")
    shown = page.locator("form:visible")
    for label, text in {"Username": "quin", "E-mail address": "quin@example.org"}.items():
        shown.get_by_label(label).fill(text)
    for label in ("Password", "Password again"):
        shown.get_by_label(label, exact=True).fill(PASSWORD)
    shown.get_by_role("button").dblclick()
    heading(page, "Account")
    page.get_by_role("button", name="Send the confirmation again").dblclick()
    says(page, "An e-mail is on its way.")
    page.get_by_role("button", name="Sign out").dblclick()
    heading(page, "Sign in")
    for path in ("register/", "confirm/resend/", "logout/"):
        assert call(page, f"POST /auth/{path}").count() == 1, path


def test_a_link_that_was_used_or_mangled_is_refused(
    page: Page, site: PageServer, chromium: Browser
) -> None:
    register(page, "rosa")
    link = linked(site, "Confirm", "rosa@example.org")
    with window(chromium, site) as elsewhere:
        phone = elsewhere.new_page()
        phone.goto(link)
        form(phone, "Confirm the address")
        says(phone, "Your e-mail address is confirmed.")
        heading(phone, "Sign in")
        phone.go_back()
        heading(phone, "This link has no key")
        for broken in (link, f"{link[:-3]}%zz"):
            phone.goto(broken)
            heading(phone, "Confirm your e-mail address")
            assert phone.get_by_role("alert").count() == 0  # of the link before
            form(phone, "Confirm the address")
            phone.get_by_role("alert").filter(has_text="The key is not valid.").wait_for()
        phone.goto("/confirm#key=")
        heading(phone, "This link has no key")


def test_a_link_of_another_account_changes_nothing_here(page: Page, site: PageServer) -> None:
    for name in ("sue", "tom"):
        body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
        assert site.once("POST", "/auth/register/", body=body).status == 201
    site.once("POST", "/auth/password/reset/", body={"username": "tom"})
    sign_in(page, "sue")
    heading(page, "Account")
    page.goto(linked(site, "Confirm", "tom@example.org"))
    form(page, "Confirm the address")
    says(page, "Done, for another account than this.")
    page.get_by_text("not confirmed", exact=True).wait_for()
    page.goto(linked(site, "password", "tom@example.org"))
    new = {"New password": PASSWORD[::-1], "New password again": PASSWORD[::-1]}
    form(page, "Set the password", **new)
    says(page, "every session of its account has ended.")
    page.get_by_role("banner").get_by_text("sue").wait_for()
    page.go_back()
    heading(page, "This link has no key")


def test_the_page_is_used_by_the_keyboard_alone(page: Page) -> None:
    def press(*keys: str) -> None:
        for key in keys:
            page.keyboard.press(key)

    def focused() -> Any:
        return page.evaluate("document.activeElement.textContent.trim()")

    register(page, "ida")
    page.get_by_role("button", name="Sign out").focus()
    press("Enter")
    heading(page, "Sign in")
    assert focused() == "Sign in"  # the heading, so that it is read out
    press("Tab")
    page.keyboard.type("ida")
    press("Tab")
    page.keyboard.type("wrong")
    press("Enter")
    page.get_by_role("alert").wait_for()
    press("Tab")
    page.keyboard.type(PASSWORD)
    press("Enter")
    heading(page, "Account")
    assert focused() == "Account"
    page.locator("summary", has_text="Password").focus()
    press("Tab", "Enter", "Tab")
    page.keyboard.type("ida@example.com")
    press("Tab")
    page.keyboard.type(PASSWORD)
    press("Tab", "Enter")
    says(page, "A link is on its way to the new address.")
    assert focused() == "E-mail address"  # what was opened, and not the top of the page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_and_nothing_is_wider_than_a_phone(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)

    def look() -> None:
        assert page.evaluate(LOW_CONTRAST) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]

    look_around(page, f"jane-{scheme}", look)


def test_twice_the_text_fits_a_phone_whatever_the_name(site: PageServer, chromium: Browser) -> None:
    with (
        installed.start(chromium.browser_type, "--blink-settings=defaultFontSize=32") as large,
        window(large, site) as context,
    ):
        page = context.new_page()

        def look() -> None:
            assert page.evaluate("getComputedStyle(document.body).fontSize") == "32px"
            assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]

        look_around(page, "jo" * 75, look)


def test_a_message_does_not_cover_what_has_the_focus_and_can_be_dismissed(page: Page) -> None:
    covered = """() => {
      const [focus, notice] = [document.activeElement, document.querySelector(".notice")]
        .map((node) => node.getBoundingClientRect());
      return focus.top < notice.bottom && focus.bottom > notice.top;
    }"""
    register(page, "jill")
    workers(page, "accepts").nth(2).wait_for()
    page.set_viewport_size({"width": 320, "height": 560})
    for summary in page.locator("summary:visible").all():
        summary.click()
    page.get_by_role("list", name="API calls").locator("summary").last.focus()
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.closest('.said') !== null"):
            break
        assert not page.evaluate(covered), page.evaluate("document.activeElement.outerHTML")
    page.get_by_role("button", name="Dismiss the message").press("Enter")
    assert page.get_by_role("status").filter(has_text="Welcome").count() == 0
    assert page.evaluate("document.activeElement.textContent") == "Account"
    assert page.get_by_role("button", name="Dismiss the message").count() == 0


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
