"""A second project, without users or a database, that takes the tokens of the first."""
