"""What the operating system gives: whole or absent output files, temporary files, worker processes, threads."""
