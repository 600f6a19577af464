"""A fleet in a box: the real server and real device agents on this machine, for one command."""
