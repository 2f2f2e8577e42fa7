"""Out of the store: what is new or changed, in the order in which it was committed, to each destination at least once."""
