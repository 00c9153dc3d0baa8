"""The Django app. Loading it registers checks and receivers; it starts nothing."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _

__all__ = ["AccessPassConfig"]


class AccessPassConfig(AppConfig):
    name = "accesspass"
    verbose_name = _("AccessPass")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        # These need the models, which are there only now.
        from django.apps import apps
        from django.contrib.auth import get_user_model
        from django.core.checks import Tags, register
        from django.db.models.signals import post_save, pre_delete, pre_save

        from accesspass import accounts, checks, mail, metrics, model_checks, receivers, throttling
        from accesspass.signals import email_confirmed, password_reset, refresh_token_reused

        metrics.switch_on()
        user = get_user_model()
        for signal, receiver in (
            (pre_save, receivers.user_saving),
            (post_save, receivers.user_saved),
            (post_save, accounts.sync_aliases),
            (pre_delete, receivers.user_deleting),
        ):
            # A proxy or child of the user model sends its own class, and is a user all the same.
            for model in apps.get_models():
                if issubclass(model, user):
                    uid = f"accesspass.{receiver.__name__}"
                    signal.connect(receiver, sender=model, dispatch_uid=uid)
        refresh_token_reused.connect(mail.token_reused, dispatch_uid="accesspass.token_reused")
        for proof in (email_confirmed, password_reset):
            proof.connect(throttling.key_came_back, dispatch_uid="accesspass.key_came_back")
        register(checks.check_options)
        register(checks.check_cache)
        register(model_checks.check_user_model)
        register(model_checks.check_mail)
        register(model_checks.check_api)
        register(model_checks.check_urls)
        register(model_checks.check_databases)
        register(checks.check_deployment, deploy=True)
        register(checks.check_keys, deploy=True)
        register(model_checks.check_mail_backend, deploy=True)
        register(model_checks.check_tables, Tags.database)
        if apps.is_installed("drf_spectacular"):
            from accesspass import schema  # noqa: F401 - it registers itself
