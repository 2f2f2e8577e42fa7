"""What any generated client shares, whichever API it is for: a request of its that is carried out with a span around it."""
