"""API authentication for Django and Django REST framework, checked from memory."""

__version__ = "0.1.0.dev0"
