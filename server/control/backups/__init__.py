"""Backups of a whole server: its registry, its transport's nodes, and what it needs to come back.

archive.py    the file: a tar with a manifest of digests
writing.py    takes one of a server that runs
reading.py    reads one without trust
restoring.py  puts one into a server's folder; what was there is moved aside, never deleted
surveys.py    what a registry's file holds, in numbers
"""
