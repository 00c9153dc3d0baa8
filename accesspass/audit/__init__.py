"""An audit log, for projects that put `accesspass.audit` into INSTALLED_APPS.

What happens to accounts and sessions is recorded with who, when, from where and in which session,
in the table of `models.Event` and as lines of the logger `accesspass.audit`.
"""
