"""What any program could use: faults said once, forks, files, imports that wait, what may be printed."""
