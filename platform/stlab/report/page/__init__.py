"""The HTML pages of a report: of one study, and of several."""
