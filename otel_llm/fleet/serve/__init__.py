"""A store that others send to: an OTLP receiver that answers when what came is in the journal."""
