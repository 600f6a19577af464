"""How people and scripts steer the server."""
