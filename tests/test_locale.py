"""The translations: all there, up to date, harmless, and what people get to see."""

from __future__ import annotations

import ast
import gettext
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from babel.messages.catalog import Catalog, Message
from django.apps import apps
from django.conf import locale as django_locale
from django.conf import settings as django_settings
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import to_language
from rest_framework.test import APIClient

import accesspass
from accesspass import mail, sessions
from accesspass.devices import device_name
from accesspass.hooks import Hooks
from accesspass.models import Account, Session
from tests.conftest import PASSWORD, MakeUser
from tests.messages import (
    FOLDER,
    LOCALES,
    compiled,
    extracted,
    merged,
    read,
    untranslated,
    written,
)

PACKAGE = Path(accesspass.__file__).parent
FORMS = {"ar": 6, "ja": 1, "pl": 3, "ru": 3, "zh_Hans": 1}  # of a plural; the others have 2
WRONG_PASSWORD = {
    "ar": "اسم المستخدم أو كلمة المرور غير صحيحة.",
    "de": "Falscher Benutzername oder falsches Passwort.",
    "en": "Wrong username or password.",
    "es": "Nombre de usuario o contraseña incorrectos.",
    "fr": "Nom d’utilisateur ou mot de passe incorrect.",
    "it": "Nome utente o password errati.",
    "ja": "ユーザー名またはパスワードが違います。",
    "nl": "Onjuiste gebruikersnaam of onjuist wachtwoord.",
    "pl": "Błędna nazwa użytkownika lub hasło.",
    "pt-br": "Nome de usuário ou senha incorretos.",
    "ru": "Неверное имя пользователя или пароль.",
    "tr": "Kullanıcı adı veya parola yanlış.",
    "zh-hans": "用户名或密码错误。",
}

every_locale = pytest.mark.parametrize("locale", LOCALES)


@pytest.fixture(autouse=True)
def the_language_stays_in_the_test() -> Iterator[None]:
    # LocaleMiddleware leaves the language of the last request active.
    with translation.override(django_settings.LANGUAGE_CODE):
        yield


@pytest.fixture(scope="module")
def found() -> Catalog:
    return extracted()


@pytest.fixture
def by_header(settings: Any) -> None:
    settings.MIDDLEWARE = ["django.middleware.locale.LocaleMiddleware", *settings.MIDDLEWARE]


def messages(catalog: Catalog) -> list[Message]:
    return [message for message in catalog if message.id]


def ids(catalog: Catalog) -> set[Any]:
    return {(message.context, message.id) for message in messages(catalog)}


def texts(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


# The files


def test_there_is_a_catalogue_for_each_language_that_is_promised_and_no_other() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(LOCALES)
    assert {to_language(locale) for locale in LOCALES} == set(WRONG_PASSWORD)
    for locale in LOCALES:
        assert (Path(django_locale.__path__[0]) / locale).is_dir()  # as Django spells it


@every_locale
def test_a_catalogue_has_every_string_of_the_code_and_no_other(found: Catalog, locale: str) -> None:
    assert len(ids(found)) > 100
    assert ids(read(locale)) == ids(found)


@every_locale
def test_every_string_is_translated_and_none_by_guessing(locale: str) -> None:
    catalog = read(locale)
    assert untranslated(catalog) == []
    assert [message.id for message in messages(catalog) if message.fuzzy] == []
    assert catalog.obsolete == {}


@every_locale
def test_a_translation_has_the_placeholders_of_its_string(locale: str) -> None:
    placeholder = re.compile(r"%\(\w+\)[a-z]|%[a-z%]|\{\w*\}")

    def count(text: str) -> Counter[str]:
        return Counter(placeholder.findall(text))

    for message in messages(read(locale)):
        for text in texts(message.string):
            assert count(text) == count(texts(message.id)[0]), text
            assert text.count("%") == texts(message.id)[0].count("%"), text


@every_locale
def test_a_translation_brings_in_no_markup_and_no_line_break(locale: str) -> None:
    for message in messages(read(locale)):
        for text in texts(message.string):
            for strange in re.findall(r"[<>&\"\x00-\x1f\x7f\x85\u2028\u2029]", text):
                assert strange in texts(message.id)[0], text
            assert text == text.strip()


@every_locale
def test_each_plural_form_is_used_by_some_number_and_none_is_missing(locale: str) -> None:
    catalog, forms = read(locale), FORMS.get(locale, 2)
    form_of = gettext.c2py(catalog.plural_expr)
    assert {form_of(n) for n in range(200)} == set(range(forms)) == set(range(catalog.num_plurals))
    plurals = [message for message in messages(catalog) if message.pluralizable]
    assert plurals
    assert {len(message.string) for message in plurals} == {forms}


def test_english_is_its_own_translation() -> None:
    assert [message.id for message in messages(read("en")) if message.string != message.id] == []


@every_locale
def test_both_files_are_what_the_command_makes_of_the_code(found: Catalog, locale: str) -> None:
    catalog, folder = merged(found, read(locale), locale), FOLDER / locale / "LC_MESSAGES"
    assert (folder / "django.po").read_bytes() == written(catalog), "run `make messages`"
    assert (folder / "django.mo").read_bytes() == compiled(catalog), "run `make messages`"


@every_locale
def test_python_reads_every_translation_in_the_compiled_file(locale: str) -> None:
    with (FOLDER / locale / "LC_MESSAGES" / "django.mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    for message in messages(read(locale)):
        if message.pluralizable:
            shown = {compiled.ngettext(*message.id, n) for n in range(200)}
            assert shown == set(message.string)
        else:
            assert compiled.gettext(message.id) == message.string


def test_the_command_keeps_what_is_translated_and_guesses_nothing(found: Catalog) -> None:
    old = Catalog("de")
    old.add("This username is taken.", "Vergeben.", user_comments=["of a translator"])
    old.add("The token is not valid.", "Ungültig?", flags=["fuzzy"])
    old.add("Gone.", "Weg.")
    new = merged(found, old, "de")
    assert new["This username is taken."].string == "Vergeben."
    assert new["This username is taken."].user_comments == ["of a translator"]
    assert len(untranslated(new)) == len(messages(found)) - 1
    assert "Gone." not in new


def test_a_resource_server_has_the_same_translations() -> None:
    """It has no `accesspass` among its apps, and Django looks into the folders of apps alone."""
    assert (PACKAGE / "resource" / "locale").resolve() == FOLDER.resolve()


# Read by operators and programmers, in English. The errors of a request are for people.
FOR_OPERATORS = ("checks", "conf", "doctor", "metrics", "model_checks", "schema", "triggers")
FOR_PROGRAMMERS = {"ImproperlyConfigured", "RuntimeError", "TypeError", "ValueError"}


def test_no_sentence_for_people_is_left_untranslatable() -> None:
    left = []
    for path in sorted(PACKAGE.glob("*.py")):
        if path.stem not in FOR_OPERATORS:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            left += [f"{path.name}:{node.lineno}: {node.value}" for node in sentences(tree)]
    assert left == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ('detail = "The body is too large."', 1),
        ('raise Invalid({"name": [{"message": "No such name.", "code": "x"}]})', 1),
        ('detail = _("The body is too large.")', 0),
        ('raise ValueError("The name must be one.")', 0),
        ('logger.info("Nothing was found.")', 0),
        ('def f():\n    "Return what was found."', 0),
    ],
)
def test_what_finds_such_sentences_can_tell(code: str, count: int) -> None:
    assert len(list(sentences(ast.parse(code)))) == count


def sentences(node: ast.AST) -> Iterator[Any]:
    """Yield the sentences in code that are neither translated, nor docstrings, nor for operators
    and programmers."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Call):
        words = set(ast.unparse(node.func).split("."))
        if words & {"_", "ngettext", "logger", *FOR_PROGRAMMERS}:
            return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            if re.fullmatch(r"[A-Z][\w']* .*[.!?]", child.value):
                yield child
        else:
            yield from sentences(child)


# What people see


@pytest.mark.django_db
@pytest.mark.usefixtures("by_header")
@pytest.mark.parametrize("language", WRONG_PASSWORD)
def test_an_error_is_in_the_language_that_was_asked_for(api: APIClient, language: str) -> None:
    body = {"username": "nobody", "password": "wrong"}
    answer = api.post("/auth/login/", body, format="json", headers={"Accept-Language": language})
    assert answer.status_code == 401
    assert answer.json() == {"detail": WRONG_PASSWORD[language], "code": "invalid_credentials"}
    assert answer.headers["Content-Language"] == language


@pytest.mark.django_db
@pytest.mark.usefixtures("by_header")
def test_the_errors_of_fields_and_of_the_token_check_are_translated(api: APIClient) -> None:
    german = {"Accept-Language": "de-AT, de;q=0.9, en;q=0.5"}
    body = {
        "username": "a\0b",
        "email": "bob@example.com",
        "password": PASSWORD,
        "password_confirm": "x",
    }
    answer = api.post("/auth/register/", body, format="json", headers=german)
    assert answer.json()["detail"] == "Das JSON enthält unzulässige Zeichen."
    answer = api.post("/auth/register/", {**body, "username": "b"}, format="json", headers=german)
    assert answer.json() == {
        "detail": "Die Anfrage enthält ungültige Werte.",
        "code": "invalid",
        "errors": {
            "password_confirm": [
                {"message": "Die Passwörter stimmen nicht überein.", "code": "password_mismatch"}
            ]
        },
    }
    answer = api.get("/protected/", headers={**german, "Authorization": "Bearer ap_at_x"})
    assert answer.json() == {"detail": "Das Token ist ungültig.", "code": "invalid_token"}


@pytest.mark.django_db
def test_without_locale_middleware_answers_are_in_the_projects_language(
    api: APIClient, settings: Any
) -> None:
    settings.LANGUAGE_CODE = "fr"
    body = {"username": "nobody", "password": "wrong"}
    with translation.override("fr"):  # as each thread of a server begins
        answer = api.post("/auth/login/", body, format="json", headers={"Accept-Language": "de"})
    assert answer.json()["detail"] == WRONG_PASSWORD["fr"]


@pytest.mark.parametrize("language", WRONG_PASSWORD)
def test_every_email_is_in_the_language_of_its_user(
    make_user: MakeUser, mailoutbox: list[Any], language: str
) -> None:
    user = make_user()
    Account.objects.create(user=user, language=language)
    for purpose in mail.PURPOSES:
        state = mail.email_keys.state_of(user) if purpose == mail.EMAIL_CHANGE else ""
        mail.notify(purpose, user, address="new@example.com", state=state)
        mail.deliver()
    assert len(mailoutbox) == len(mail.PURPOSES)
    direction = "rtl" if language == "ar" else "ltr"
    for message in mailoutbox:
        html = message.alternatives[0][0]
        assert f'<html lang="{language}" dir="{direction}">' in html
        assert "app.example.com" in message.subject
        assert "\n" not in message.subject
        assert "%(" not in message.subject + message.body + html
        if language != "en":
            assert not re.search(
                r"\b(?:somebody|you|your|please|the)\b", message.body, re.IGNORECASE
            )
    with translation.override(language):
        expected = _("You have an account at %(site)s") % {"site": "app.example.com"}
    assert expected in {message.subject for message in mailoutbox}


@pytest.mark.django_db
def test_who_registers_in_german_gets_german_emails(api: APIClient, mailoutbox: list[Any]) -> None:
    address = "anna@example.com"
    body = {"username": address, "email": address, "password": PASSWORD}
    api.post("/auth/register/", body, format="json", headers={"Accept-Language": "de"})
    mail.deliver()
    (message,) = mailoutbox
    assert message.subject == "Bestätigen Sie Ihre E-Mail-Adresse für app.example.com"
    text = "Der Link funktioniert einmal und ist 1\xa0Tag lang gültig."
    assert text in message.body
    assert text in message.alternatives[0][0]


def test_an_email_without_a_language_is_in_the_projects(
    user: Any, mailoutbox: list[Any], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.LANGUAGE_CODE = "nl"
    monkeypatch.setattr(Hooks, "email_language", lambda self, user, language: "")
    mail.notify(mail.PASSWORD_CHANGED, user)
    mail.deliver()
    assert mailoutbox[0].subject == "Uw wachtwoord bij app.example.com is gewijzigd"


def test_devices_and_rows_are_named_in_the_active_language(user: Any) -> None:
    row = Session.objects.get(pk=sessions.start(user).session_id)
    agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
    with translation.override("de"):
        assert device_name(agent) == "Firefox unter Linux"
        assert str(row) == f"Sitzung {row.pk}"
        assert apps.get_model("accesspass", "Session")._meta.verbose_name_plural == "Sitzungen"
    assert device_name(agent) == "Firefox on Linux"


def test_a_project_overrides_a_string_in_its_own_catalogue(settings: Any, tmp_path: Path) -> None:
    ours = Catalog("de")
    ours.add("Wrong username or password.", "Das stimmt so nicht.")
    folder = tmp_path / "de" / "LC_MESSAGES"
    folder.mkdir(parents=True)
    (folder / "django.mo").write_bytes(compiled(ours))
    settings.LOCALE_PATHS = [tmp_path]
    with translation.override("de"):
        assert _("Wrong username or password.") == "Das stimmt so nicht."
        assert _("The token is not valid.") == "Das Token ist ungültig."
