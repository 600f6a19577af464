"""One federated workload through several simulators, each as the command that a user would give.

Read in this order: ``workload`` (what is computed, and what all sides are given), ``sides`` (their
commands), ``measure`` (how they are run), ``report`` (what is printed).
"""
