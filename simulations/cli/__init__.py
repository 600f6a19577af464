"""The simulation's groups of the `fleet` command, one file per noun."""
