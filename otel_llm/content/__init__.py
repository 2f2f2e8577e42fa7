"""What was said, where it is asked for: captured, cut into parts, without secrets."""
