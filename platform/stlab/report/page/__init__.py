"""The HTML pages of a report on one study or on several."""
