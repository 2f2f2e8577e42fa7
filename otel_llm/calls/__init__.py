"""The life of one model call, from the request to its end, and what it takes with it over threads and processes."""
