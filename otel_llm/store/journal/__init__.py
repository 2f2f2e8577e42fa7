"""The files that each process writes its calls to, before anything else is done with them."""
