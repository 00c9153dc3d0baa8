"""What a password hash costs: time of one, and memory of as many as a process does at a time.

    python -m benchmarks.hashing

Each hasher runs in a process of its own, so that the memory is its own.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import threading
import time
from typing import Any

from django.conf import settings

HASHERS = (
    "accesspass.hashing.Argon2PasswordHasher",
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.ScryptPasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
)
CONCURRENCY = 8  # the default of HASHING_CONCURRENCY
TIMES = 9
PASSWORD = "correct horse battery staple"


def peak() -> float:
    """Return the most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(path: str, found: Any) -> None:
    """Put the median milliseconds of one hash, and MiB of CONCURRENCY at once, into the queue."""
    settings.configure(PASSWORD_HASHERS=[path])
    from django.contrib.auth.hashers import make_password

    before, times = peak(), []
    for _ in range(TIMES):
        began = time.process_time()
        make_password(PASSWORD)
        times.append(time.process_time() - began)
    threads = [threading.Thread(target=make_password, args=(PASSWORD,)) for _ in range(CONCURRENCY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.put((statistics.median(times) * 1000, peak() - before))


def main() -> None:
    """Print the table."""
    print(f"{'hasher':<50} {'CPU of one':>10} {f'memory of {CONCURRENCY}':>12}")
    for path in HASHERS:
        context = multiprocessing.get_context("spawn")
        found: Any = context.Queue()
        process = context.Process(target=measure, args=(path, found))
        process.start()
        milliseconds, memory = found.get()
        process.join()
        print(f"{path:<50} {milliseconds:>7.0f} ms {memory:>8.0f} MiB")


if __name__ == "__main__":
    main()
