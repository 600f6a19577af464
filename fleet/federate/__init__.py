"""The method across devices: plans and updates, admission, exact aggregation, releases.

The reader's path: ``records`` → ``wire`` → ``admission`` → ``aggregate`` → ``releases`` →
``served``.
"""
