"""Who is told of what is spent: thresholds that are crossed, and webhooks and commands that hear of each once."""
