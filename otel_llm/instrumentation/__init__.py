"""The hooks in the client libraries: a folder for each library, and beside them what all of them need."""
