"""What is told beside spans: the metrics and events of the GenAI conventions."""
