"""Commands that read the account."""
