"""Methods of adaptation, one file each, all through one protocol."""
