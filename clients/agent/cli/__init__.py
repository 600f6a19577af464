"""The ``fleet-device`` command line: one file per group of verbs, each imported when asked for."""
