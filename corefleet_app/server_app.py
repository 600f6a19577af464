from server import app as service
app = service.app
