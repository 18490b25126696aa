"""The check of a host with cards: one command, a table, and a report to send."""
