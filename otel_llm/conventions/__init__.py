"""What words mean: names of attributes, token counts, tool calls, how an answer ended."""
