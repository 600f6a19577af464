"""Data sets of human activity: one canonical format, official loaders, splits by person.

    sources.find("hapt") ──► DataSet ──► partition.split_people ──► partition.chronological
    hapt | motionsense | usc_had        normalise.fit (source people only)
    synthetic.make                      shifts.parse("remount:35").apply(x, ...)

Everything here needs numpy alone; only the USC-HAD reader asks for scipy, when it is called.
"""

from fleet.har.canonical import Channel, DataSet, read, write

__all__ = ["Channel", "DataSet", "read", "write"]
