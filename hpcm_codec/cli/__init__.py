"""The command line: `main.py` is the entry, one file per command; a command parses, calls the API, prints."""
