"""Proves that tests can fail: breaks the code on purpose, one promise after another.

    python -m tests.mutants [NAME ...]

Each mutant names the test that has to fail. Every one is made in a copy of the project of its own,
never in the checkout; the named tests pass in an unbroken copy first. The exit status is 1 if a
mutant survives, 2 if the code no longer is what a mutant replaces.
"""
