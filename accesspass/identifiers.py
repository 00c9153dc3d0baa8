"""The canonical form of usernames and e-mail addresses.

One form for both, in one namespace: NFKC, casefold, NFKC. It is computed here and compared here,
never by the database, whose collations and `lower()` know other rules (CVE-2019-19844).
"""

from __future__ import annotations

import re
import unicodedata

from django.core.exceptions import ValidationError
from django.core.validators import EmailValidator
from django.utils.translation import gettext_lazy as _

__all__ = [
    "MAX_LENGTH",
    "canonical",
    "is_plain_text",
    "validate_email",
    "validate_text",
    "validate_username",
]

MAX_LENGTH = 255
"""The longest canonical form that is kept, in characters."""

_validate_address = EmailValidator()
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def canonical(value: str) -> str:
    """Return the form under which two spellings of one name are equal.

    Never fails, so that a login may look for anything; `validate_username` and `validate_email`
    decide what may be registered.
    """
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold())


def is_plain_text(value: str) -> bool:
    """Tell whether every database can store and search `value`: no NUL, no lone surrogate."""
    return _UNSTORABLE.search(value) is None


def validate_text(value: str) -> None:
    """Raise ValidationError unless `value` is a name that can be shown on one line and stored.

    Control and format characters are refused: the latter make two different names look alike.
    """
    if any(unicodedata.category(x) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for x in value):
        raise ValidationError(_("This has characters that are not allowed."), code="invalid")
    if len(canonical(value)) > MAX_LENGTH:
        raise ValidationError(
            _("This has more than %(limit)d characters."),
            code="max_length",
            params={"limit": MAX_LENGTH},
        )


def validate_email(value: str) -> None:
    """Raise ValidationError unless `value` is one e-mail address that is safe to send mail to.

    The local part must be ASCII: some systems fold other letters onto ASCII ones and would deliver
    to somebody else.
    """
    validate_text(value)
    local, _at, domain = value.rpartition("@")
    if not local.isascii() or "@" in local or "," in value or "@" in canonical(domain):
        raise ValidationError(_("Enter a valid e-mail address."), code="invalid")
    _validate_address(value)


def validate_username(value: str, email: str) -> None:
    """Raise ValidationError unless `value` may be the username of whoever has that address.

    What is an @ under NFKC counts as one. A username with it could be somebody else's address, so
    it is refused unless it is the user's own.
    """
    validate_text(value)
    name = canonical(value)
    if not name.strip():
        raise ValidationError(_("This may not be blank."), code="blank")
    if "@" in name and name != canonical(email):
        raise ValidationError(
            _("A username with an @ must be your own e-mail address."), code="invalid"
        )
