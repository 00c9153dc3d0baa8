from __future__ import annotations

from django.contrib.auth.hashers import ScryptPasswordHasher


class HungryScrypt(ScryptPasswordHasher):
    """scrypt with 64 MB, about what Argon2id is told to take on a server."""

    work_factor = 2**16
    block_size = 8
    maxmem = 2**27
