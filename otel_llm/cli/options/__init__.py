"""What several commands take: a store, a time, a condition."""
