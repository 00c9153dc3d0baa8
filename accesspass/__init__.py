"""API authentication for Django and Django REST framework, checked from memory."""

__version__ = "1.0.0rc1"
