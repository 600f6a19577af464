"""One file per benchmark; `fleet bench NAME` runs it."""
