"""Artifacts: every file that passes between commands. Each has a schema number, is checked on load, and is written
to a temporary sibling that is renamed when it is complete."""
