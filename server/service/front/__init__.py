"""The TLS front: the only door to the SuperLink, and it leads to the fleet API and health alone.

Pure rules (:mod:`rules`, :mod:`rates`) and a thin shell around them (:mod:`connection`,
:mod:`upstream`, :mod:`listen`); h11 reads HTTP, so there is no parser of our own.
``python -m server.service.front --folder DIR`` runs it.
"""
