"""Batch-norm statistics of the device's own: of its windows, without labels, never sent.

They are taken of every n-th of its newest windows, the newest among them, up to ``windows`` of
``[statistics]`` in all. n is 16 (``SPREAD`` of ``statistics``), or less where there are fewer
windows than that takes; windows that are damaged or a fault of the sensor are left out.

    settings  what the owner decides           kept      what is in the store
    statistics  made, kept, and computed with  removing  off and drop: from any process
    summary   what people are told

Trainings for the fleet and of the private core run under them; evaluations, probe and status are
of the release under the fleet's. What is served of them is in ``private``, which alone serves what
is the device's own.
"""
