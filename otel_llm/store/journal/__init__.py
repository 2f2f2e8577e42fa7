"""The files that each process writes its calls to, first of all."""
