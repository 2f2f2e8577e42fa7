"""What a terminal shows: tables, numbers, plots."""
