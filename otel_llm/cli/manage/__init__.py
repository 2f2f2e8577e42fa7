"""Commands that change the account, or check it."""
