"""The account in a notebook: data frames, and what Jupyter shows of a trace and of sums."""
