"""Batch-norm statistics of the device's own: from its newest windows, without labels, never sent.

    settings  what the owner decides           kept      what is in the store
    statistics  made, kept, and computed with  removing  off and drop: from any process
    summary   what people are told

Trainings for the fleet and of the private core run under them; evaluations, probe and status are
of the release under the fleet's. What is served of them is in ``private``, which alone serves what
is the device's own.
"""
