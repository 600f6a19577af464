"""The registry's schema, revision by revision; run by :func:`server.registry.schema.migrate`."""
