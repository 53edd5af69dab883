"""Showing results: terminal, HTML for files and notebooks, JSON and Markdown."""
