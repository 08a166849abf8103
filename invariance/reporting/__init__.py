"""Renderings of a report: terminal, Markdown, HTML and figures."""
