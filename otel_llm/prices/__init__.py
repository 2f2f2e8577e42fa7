"""What a call costs, and what is owed for."""
