"""What a monitoring system sees of a fleet: metrics, health and readiness, read from the registry.

    registry ──read──► Snapshot ──samples──► metric families ──► /metrics
                                └──judged──► verdicts ────────► /health, /ready

Nothing is counted in memory that the registry does not hold, so any process may serve it and a
restart loses nothing.
"""
