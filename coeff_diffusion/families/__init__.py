"""Bases: which kinds there are, how they are loaded, and what tells one from another."""
