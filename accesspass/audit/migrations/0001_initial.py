from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Event",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("created_at", models.DateTimeField(verbose_name="created at")),
                ("action", models.CharField(max_length=32, verbose_name="action")),
                (
                    "user_id",
                    models.CharField(blank=True, default="", max_length=255, verbose_name="user"),
                ),
                (
                    "username",
                    models.CharField(
                        blank=True, default="", max_length=254, verbose_name="username"
                    ),
                ),
                ("session_id", models.UUIDField(blank=True, null=True, verbose_name="session")),
                (
                    "ip",
                    models.GenericIPAddressField(blank=True, null=True, verbose_name="IP address"),
                ),
                (
                    "user_agent",
                    models.CharField(
                        blank=True, default="", max_length=300, verbose_name="user agent"
                    ),
                ),
                ("details", models.JSONField(blank=True, default=dict, verbose_name="details")),
            ],
            options={
                "verbose_name": "security event",
                "verbose_name_plural": "security events",
                "indexes": [
                    models.Index(fields=["user_id", "-id"], name="accesspass_audit_user"),
                    models.Index(fields=["created_at"], name="accesspass_audit_time"),
                ],
            },
        ),
    ]
