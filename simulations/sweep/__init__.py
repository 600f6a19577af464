"""Sweeps: many runs of one recipe, in parallel, kept in one SQLite file, and their report."""
