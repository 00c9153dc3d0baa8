"""Public signals. Their names are in the past tense; what a receiver gets stands above each.

A receiver cannot veto: what alters or refuses is a method of `accesspass.hooks.Hooks`. Logins are
announced by Django's own `user_logged_in` and `user_login_failed`.
"""

from __future__ import annotations

from django.dispatch import Signal

__all__ = [
    "account_deleted",
    "email_changed",
    "email_confirmed",
    "network_over_limit",
    "password_changed",
    "password_reset",
    "refresh_token_reused",
    "session_revoked",
    "session_started",
    "user_registered",
    "username_changed",
]

# sender: the user class; user; request (HttpRequest, or None outside of HTTP)
user_registered = Signal()

# sender: the user class; user; session_id (UUID); request (HttpRequest or None)
session_started = Signal()

# sender: the user class; user_id (primary key, or None); session_id (UUID); reason (str);
# request (HttpRequest, or None where it ends by itself or by a change of the user)
session_revoked = Signal()

# A refresh token that had been exchanged before was sent again, so its session was revoked.
# sender: the user class; user_id (primary key, or None); session_id (UUID);
# request (HttpRequest or None)
refresh_token_reused = Signal()

# More requests came from one network than THROTTLES expects. None was refused for that; it is sent
# once in each window of time.
# sender: the model Throttle; scope ("login", "register" or "mail"); network (str, as
# "192.0.2.0/24", or "unknown"); request (HttpRequest)
network_over_limit = Signal()

# What follows is sent after the change is committed; a receiver that fails is logged, no more.

# sender: the user class; user; request (HttpRequest or None)
email_confirmed = Signal()

# The user has changed the password, knowing the old one.
# sender: the user class; user; request (HttpRequest or None)
password_changed = Signal()

# The password was set by a key from an e-mail.
# sender: the user class; user; request (HttpRequest or None)
password_reset = Signal()

# sender: the user class; user; old (str); new (str); request (HttpRequest or None)
email_changed = Signal()

# sender: the user class; user; old (str); new (str); request (HttpRequest or None)
username_changed = Signal()

# The user is gone: what is left is what the row said.
# sender: the user class; user_id (primary key); username (str); email (str);
# request (HttpRequest or None)
account_deleted = Signal()
