"""Check of the agent: does a process answer at its socket?"""

from __future__ import annotations

import socket

from clients.agent.config import AGENT_SOCKET
from clients.agent.doctor.finding import Finding, Subject, failed, fine, warn

__all__ = ["CONNECT_LIMIT_S", "check_agent"]

CONNECT_LIMIT_S = 2.0
START = "Start it: fleet-device run, or its service."


def check_agent(subject: Subject) -> Finding:
    """A process takes connections at the agent's socket."""
    path = subject.state / AGENT_SOCKET
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(CONNECT_LIMIT_S)
            client.connect(str(path))
    except FileNotFoundError:
        return warn("not running", START)
    except ConnectionRefusedError:
        return warn(f"not running; {path} is left from one that was killed", START)
    except TimeoutError:
        return failed(
            f"{path} takes no connection within {CONNECT_LIMIT_S:g} s", "Restart the agent."
        )
    except OSError as error:
        return failed(
            f"{path} cannot be reached ({error.strerror or error})",
            "Run this as the agent's user; a socket's path has at most 107 bytes.",
        )
    return fine(f"running, answers at {path}")
