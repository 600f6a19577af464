"""Scores and costs, measured rather than estimated."""
