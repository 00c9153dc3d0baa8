"""A small project on top of the example one, to be run in every way that Django is run."""
