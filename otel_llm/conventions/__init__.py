"""What words mean: names of attributes, the dialects of others, token counts, tool calls, how an answer ended."""
