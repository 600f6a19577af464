"""Drift on the device: it watches its own windows, keeps alarms, and takes part because of them.

    windows as they came ─► Watcher (fleet.continual's detectors) ─► alarms ─► rounds it joins

The reader's path: ``settings`` → ``kept`` (what is in the store) → ``reference`` → ``watcher``,
which alone needs torch; ``participation`` → ``showing``, what people and servers are told.
"""
