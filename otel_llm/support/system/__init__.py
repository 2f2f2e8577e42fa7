"""What each operating system does in its own way: locks of files, who owns them, reading at an offset, and memory."""
