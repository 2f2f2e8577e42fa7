"""What may be spent: the rules of `OTEL_LLM_BUDGETS`, what was spent by the account, and who is told or stopped."""
