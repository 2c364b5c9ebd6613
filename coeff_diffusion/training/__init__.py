"""Teaching a base a subject."""
