"""Continual runs: a fleet over the periods of a scenario, on every simulation engine."""
