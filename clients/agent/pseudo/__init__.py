"""Labels that a device gives its own windows, where its network has shown that it may.

Off, nothing is computed and nothing is kept. On, each training for the fleet first asks the network
of the plan's release, tried on labelled windows held out of all training; what it is sure of then
trains beside the labelled windows. Which windows these were stays here.
"""
