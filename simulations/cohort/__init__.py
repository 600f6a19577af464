"""The cohort grid: a whole cohort of virtual devices behind one call.

The reader's path: ``fleet`` is what answers, device by device or batched (``batched``); ``grid``
is the Flower grid before it; ``scale`` counts wire bytes without deflating each message.
"""
