"""File formats: one module per format, which reads a path into a series or into ready-made windows."""
