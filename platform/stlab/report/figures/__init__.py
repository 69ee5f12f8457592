"""The figures of a report, a subject a file."""
