"""The `fleet` command: its root and the server's groups, one file per noun."""
