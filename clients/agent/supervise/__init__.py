"""Which processes a device runs, and when: agent and SuperNode under :mod:`fleet.supervise`.

Pure rules (:mod:`nightly`, :mod:`clockwait`) and what they make of a device (:mod:`plan`); nothing
here loads torch, Flower or gRPC.
"""
