from django.apps import AppConfig


class OddUsersConfig(AppConfig):
    name = "tests.oddusers"
    label = "oddusers"
    default_auto_field = "django.db.models.AutoField"
