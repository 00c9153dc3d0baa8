"""User models that a library may meet: ACCESSPASS_TEST_USER says which of them is the user."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.db import models


class Manager(BaseUserManager[Any]):
    def create_user(self, password: str | None = None, **fields: Any) -> Any:
        user = self.model(**fields)
        user.set_password(password)
        user.save(using=self._db)
        return user


class Number(AbstractBaseUser):
    """A number for a name, and neither an e-mail address nor any flag."""

    number = models.IntegerField(unique=True)

    objects: ClassVar[Manager] = Manager()

    USERNAME_FIELD = "number"
    REQUIRED_FIELDS: ClassVar[list[str]] = []


class Person(AbstractBaseUser):
    login = models.CharField(max_length=50, unique=True)
    email = models.EmailField()
    is_active = models.BooleanField(default=True)
    club = models.ForeignKey("Club", models.CASCADE, null=True, blank=True)


class Club(models.Model):
    name = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.name


class Hiding(Manager):
    """A manager that does not show all, as those of soft deletion do."""

    def get_queryset(self) -> Any:
        return super().get_queryset().exclude(login="hidden")


class Member(Person):
    """Two tables, a manager that hides rows, `from_db` and `__init__` of its own."""

    level = models.IntegerField(default=1)

    objects: ClassVar[Hiding] = Hiding()

    USERNAME_FIELD = "login"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made_by = "init"

    @classmethod
    def from_db(cls, db: Any, field_names: Any, values: Any) -> Any:
        made = super().from_db(db, field_names, values)
        made.made_by = "from_db"
        return made


class Stubborn(AbstractBaseUser):
    """Reads in `__init__` what no session record holds."""

    username = models.CharField(max_length=50, unique=True)
    email = models.EmailField()
    nickname = models.CharField(max_length=50, default="nick")
    motto = models.CharField(max_length=50, default="motto")

    objects: ClassVar[Manager] = Manager()

    USERNAME_FIELD = "username"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.title = f"{self.nickname}: {self.motto}"
