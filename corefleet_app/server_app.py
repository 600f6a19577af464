"""All of the server app that travels in the bundle; the rest is installed."""

from server import app as service

app = service.app
