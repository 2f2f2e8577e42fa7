"""The database file that others read while it is written."""
