"""All of the client app that travels in the bundle; the rest is installed."""

from clients import bridge

app = bridge.app
