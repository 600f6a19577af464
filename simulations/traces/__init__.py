"""Traces: when devices are there, how fast they are and what goes wrong on the way."""
