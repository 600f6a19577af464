"""A supervisor of a host's processes: kept running, bounded, and ended without orphans.

Pure rules (:mod:`restarts`) and a thin shell around them (:mod:`child`, :mod:`output`, :mod:`ward`,
:mod:`supervisor`); what is special to a device or a server comes in by a :class:`~ward.Spec`.
"""
