"""``fleet bench continual``: every strategy over every scenario and data set, one protocol."""
