"""``fleet bench peft``: every method under one protocol, one person held out at a time."""
