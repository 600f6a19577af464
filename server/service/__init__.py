"""The server as one service: SuperLink, SuperExec and the TLS front, started by one command.

    device ──TLS──▶ front ──TLS, loopback──▶ SuperLink ◀── SuperExec ── ServerApp, one for a run

Only the front can be reached from outside; it forwards the fleet API and health, nothing else.
"""
