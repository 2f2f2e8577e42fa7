"""What the account can be asked: one set of questions, whichever engine holds the calls."""
