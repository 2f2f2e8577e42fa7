"""The hooks in the client libraries: one folder for each, and beside them what all need."""
