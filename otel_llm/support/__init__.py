"""What any program could use: faults that are said once, forks, files, late imports, and secrets that are not printed."""
