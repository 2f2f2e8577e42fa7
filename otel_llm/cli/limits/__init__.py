"""Commands about what may be spent."""
