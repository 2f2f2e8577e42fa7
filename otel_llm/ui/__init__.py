"""The account in a browser: `otel-llm ui`. What a page shows is asked in `questions`, chosen by `scope`, drawn by `templates`."""
