"""The figures of a report, a subject a file.

A new figure is a function in the file of its subject, and a call in ``study_figures.draw_figures``; the figures of a search are drawn in
``search.search_figures``.
"""
