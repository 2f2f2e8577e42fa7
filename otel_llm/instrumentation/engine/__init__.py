"""What any generated client shares, whichever API it is for: one of its requests, carried out with a span around it."""
