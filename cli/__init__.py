"""The command line: one file per command. Nothing in the library imports it."""
