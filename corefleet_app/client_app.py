from clients import bridge
app = bridge.app
