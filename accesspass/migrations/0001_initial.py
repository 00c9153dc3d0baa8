# ruff: noqa: E501
import uuid

import django.contrib.auth.validators
import django.db.models.deletion
import django.db.models.functions.text
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

import accesspass.models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        # Added by hand: the user may be in any app.
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="User",
            fields=[
                ("password", models.CharField(max_length=128, verbose_name="password")),
                (
                    "last_login",
                    models.DateTimeField(blank=True, null=True, verbose_name="last login"),
                ),
                (
                    "is_superuser",
                    models.BooleanField(
                        default=False,
                        help_text="Designates that this user has all permissions without explicitly assigning them.",
                        verbose_name="superuser status",
                    ),
                ),
                (
                    "id",
                    models.CharField(
                        default=accesspass.models.new_user_id,
                        editable=False,
                        max_length=32,
                        primary_key=True,
                        serialize=False,
                        verbose_name="id",
                    ),
                ),
                (
                    "username",
                    models.CharField(
                        error_messages={"unique": "A user with that username already exists."},
                        max_length=150,
                        unique=True,
                        validators=[django.contrib.auth.validators.UnicodeUsernameValidator()],
                        verbose_name="username",
                    ),
                ),
                (
                    "email",
                    models.EmailField(blank=True, max_length=254, verbose_name="e-mail address"),
                ),
                (
                    "is_active",
                    models.BooleanField(
                        default=True,
                        help_text="Take this away instead of deleting the account; it ends every session.",
                        verbose_name="active",
                    ),
                ),
                (
                    "is_staff",
                    models.BooleanField(
                        default=False,
                        help_text="Whether the user can log in to the admin site.",
                        verbose_name="staff",
                    ),
                ),
                (
                    "date_joined",
                    models.DateTimeField(
                        default=django.utils.timezone.now, verbose_name="date joined"
                    ),
                ),
                (
                    "groups",
                    models.ManyToManyField(
                        blank=True,
                        help_text="The groups this user belongs to. A user will get all permissions granted to each of their groups.",
                        related_name="user_set",
                        related_query_name="user",
                        to="auth.group",
                        verbose_name="groups",
                    ),
                ),
                (
                    "user_permissions",
                    models.ManyToManyField(
                        blank=True,
                        help_text="Specific permissions for this user.",
                        related_name="user_set",
                        related_query_name="user",
                        to="auth.permission",
                        verbose_name="user permissions",
                    ),
                ),
            ],
            options={
                "verbose_name": "user",
                "verbose_name_plural": "users",
                "swappable": "AUTH_USER_MODEL",
            },
        ),
        migrations.CreateModel(
            name="Lease",
            fields=[
                ("name", models.CharField(max_length=32, primary_key=True, serialize=False)),
                ("holder", models.CharField(blank=True, default="", max_length=64)),
                ("until", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="Node",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("host", models.CharField(max_length=255, verbose_name="host")),
                ("pid", models.PositiveIntegerField(verbose_name="process id")),
                ("version", models.CharField(max_length=32, verbose_name="version")),
                ("started_at", models.DateTimeField(verbose_name="first report")),
                ("reported_at", models.DateTimeField(db_index=True, verbose_name="last report")),
                ("engine", models.CharField(max_length=32, verbose_name="engine")),
                (
                    "role",
                    models.CharField(blank=True, default="", max_length=32, verbose_name="role"),
                ),
                (
                    "epoch",
                    models.CharField(blank=True, default="", max_length=64, verbose_name="epoch"),
                ),
                ("applied", models.PositiveBigIntegerField(verbose_name="applied")),
                ("head", models.PositiveBigIntegerField(null=True, verbose_name="head")),
                ("staleness", models.FloatField(null=True, verbose_name="staleness")),
                ("fresh", models.BooleanField(verbose_name="fresh")),
                ("entries", models.PositiveBigIntegerField(verbose_name="entries")),
                ("bytes", models.PositiveBigIntegerField(verbose_name="bytes")),
                ("last_resync", models.DateTimeField(null=True, verbose_name="last resync")),
                ("counters", models.JSONField(default=dict, verbose_name="counters")),
            ],
            options={
                "verbose_name": "node",
                "verbose_name_plural": "nodes",
            },
        ),
        migrations.CreateModel(
            name="Throttle",
            fields=[
                ("key", models.CharField(max_length=64, primary_key=True, serialize=False)),
                ("count", models.PositiveIntegerField()),
                ("expires_at", models.DateTimeField(db_index=True)),
            ],
            options={
                "verbose_name": "throttle",
                "verbose_name_plural": "throttles",
            },
        ),
        migrations.CreateModel(
            name="Account",
            fields=[
                (
                    "user",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="accesspass_account",
                        serialize=False,
                        to=settings.AUTH_USER_MODEL,
                        verbose_name="user",
                    ),
                ),
                (
                    "confirmed_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="confirmed at"),
                ),
                (
                    "confirmed_email",
                    models.CharField(
                        blank=True, default="", max_length=254, verbose_name="confirmed address"
                    ),
                ),
                ("meta", models.JSONField(blank=True, default=dict, verbose_name="meta")),
                ("claims", models.JSONField(blank=True, default=dict, verbose_name="claims")),
                (
                    "language",
                    models.CharField(
                        blank=True, default="", max_length=16, verbose_name="language"
                    ),
                ),
                (
                    "login_count",
                    models.PositiveBigIntegerField(
                        default=0, editable=False, verbose_name="logins"
                    ),
                ),
                (
                    "published",
                    models.CharField(blank=True, default="", editable=False, max_length=64),
                ),
            ],
            options={
                "verbose_name": "account",
                "verbose_name_plural": "accounts",
            },
        ),
        migrations.CreateModel(
            name="EmailKey",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("digest", models.CharField(max_length=64)),
                ("purpose", models.CharField(max_length=32, verbose_name="purpose")),
                ("email", models.CharField(max_length=254, verbose_name="e-mail address")),
                ("state", models.CharField(max_length=64)),
                ("created_at", models.DateTimeField(verbose_name="created at")),
                ("expires_at", models.DateTimeField(verbose_name="expires at")),
                ("spent_at", models.DateTimeField(blank=True, null=True, verbose_name="spent at")),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="accesspass_email_keys",
                        to=settings.AUTH_USER_MODEL,
                        verbose_name="user",
                    ),
                ),
            ],
            options={
                "verbose_name": "e-mail key",
                "verbose_name_plural": "e-mail keys",
            },
        ),
        migrations.CreateModel(
            name="MailRequest",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("purpose", models.CharField(max_length=32, verbose_name="purpose")),
                (
                    "identifier",
                    models.CharField(
                        blank=True, default="", max_length=255, verbose_name="identifier"
                    ),
                ),
                (
                    "address",
                    models.CharField(
                        blank=True, default="", max_length=254, verbose_name="e-mail address"
                    ),
                ),
                ("context", models.JSONField(blank=True, default=dict)),
                (
                    "language",
                    models.CharField(
                        blank=True, default="", max_length=16, verbose_name="language"
                    ),
                ),
                ("pending_key", models.CharField(max_length=288, null=True, unique=True)),
                ("created_at", models.DateTimeField(verbose_name="created at")),
                ("lease_until", models.DateTimeField(verbose_name="not before")),
                ("attempts", models.PositiveIntegerField(default=0, verbose_name="attempts")),
                ("sent_at", models.DateTimeField(blank=True, null=True, verbose_name="sent at")),
                (
                    "failed_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="given up at"),
                ),
                (
                    "error",
                    models.CharField(
                        blank=True, default="", max_length=100, verbose_name="last error"
                    ),
                ),
                (
                    "user",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="accesspass_mail_requests",
                        to=settings.AUTH_USER_MODEL,
                        verbose_name="user",
                    ),
                ),
            ],
            options={
                "verbose_name": "e-mail",
                "verbose_name_plural": "e-mails",
            },
        ),
        migrations.CreateModel(
            name="Session",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("created_at", models.DateTimeField(verbose_name="created at")),
                ("last_used_at", models.DateTimeField(verbose_name="last used at")),
                (
                    "expires_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="expires at"),
                ),
                ("revision", models.PositiveBigIntegerField(default=1)),
                ("generation", models.PositiveBigIntegerField(default=0)),
                ("refresh_digest", models.CharField(max_length=64)),
                ("previous_digest", models.CharField(blank=True, default="", max_length=64)),
                ("nonce", models.CharField(blank=True, default="", max_length=64)),
                ("rotated_at", models.DateTimeField(blank=True, null=True)),
                ("access_tokens", models.JSONField(default=list)),
                ("claims", models.JSONField(blank=True, default=dict, verbose_name="claims")),
                (
                    "name",
                    models.CharField(blank=True, default="", max_length=100, verbose_name="name"),
                ),
                ("auth_hash", models.CharField(blank=True, default="", max_length=128)),
                (
                    "revoked_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="revoked at"),
                ),
                (
                    "revoked_reason",
                    models.CharField(blank=True, default="", max_length=32, verbose_name="reason"),
                ),
                ("publication_pending", models.BooleanField(default=False)),
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
                (
                    "user",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="accesspass_sessions",
                        to=settings.AUTH_USER_MODEL,
                        verbose_name="user",
                    ),
                ),
            ],
            options={
                "verbose_name": "session",
                "verbose_name_plural": "sessions",
            },
        ),
        migrations.CreateModel(
            name="Identifier",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("value", models.CharField(max_length=255, unique=True, verbose_name="value")),
                (
                    "account",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="identifiers",
                        to="accesspass.account",
                        verbose_name="account",
                    ),
                ),
            ],
            options={
                "verbose_name": "identifier",
                "verbose_name_plural": "identifiers",
            },
        ),
        migrations.AddConstraint(
            model_name="user",
            constraint=models.UniqueConstraint(
                django.db.models.functions.text.Lower("username"),
                name="accesspass_user_username",
                violation_error_code="username_taken",
                violation_error_message="This username is taken.",
            ),
        ),
        migrations.AddConstraint(
            model_name="user",
            constraint=models.UniqueConstraint(
                django.db.models.functions.text.Lower("email"),
                condition=models.Q(("email", ""), _negated=True),
                name="accesspass_user_email",
                violation_error_code="email_taken",
                violation_error_message="This e-mail address is taken.",
            ),
        ),
        migrations.AddIndex(
            model_name="emailkey",
            index=models.Index(fields=["user", "spent_at"], name="accesspass_emailkey_user"),
        ),
        migrations.AddIndex(
            model_name="emailkey",
            index=models.Index(fields=["expires_at"], name="accesspass_emailkey_expiry"),
        ),
        migrations.AddIndex(
            model_name="mailrequest",
            index=models.Index(
                condition=models.Q(("failed_at", None), ("sent_at", None)),
                fields=["lease_until"],
                name="accesspass_mail_due",
            ),
        ),
        migrations.AddIndex(
            model_name="mailrequest",
            index=models.Index(fields=["user", "purpose", "sent_at"], name="accesspass_mail_sent"),
        ),
        migrations.AddIndex(
            model_name="mailrequest",
            index=models.Index(
                condition=models.Q(("failed_at__isnull", False)),
                fields=["failed_at"],
                name="accesspass_mail_failed",
            ),
        ),
        migrations.AddIndex(
            model_name="session",
            index=models.Index(fields=["user", "revoked_at"], name="accesspass_session_user"),
        ),
        migrations.AddIndex(
            model_name="session",
            index=models.Index(
                condition=models.Q(("publication_pending", True)),
                fields=["publication_pending"],
                name="accesspass_session_pending",
            ),
        ),
    ]
