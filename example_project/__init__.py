"""A small project that uses AccessPass, and the demo that runs it."""
