"""What a call costs, and which calls cost anything."""
