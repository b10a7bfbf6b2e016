"""Files that are written whole or not at all, temporary files, worker processes and threads."""
