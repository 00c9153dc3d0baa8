from django.apps import AppConfig


class UuidAppConfig(AppConfig):
    name = "tests.uuidapp"
    label = "uuidapp"
