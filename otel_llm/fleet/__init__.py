"""Many machines, one account: out of a store in the order in which it was written, and into another."""
