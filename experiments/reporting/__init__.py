"""The report of a study: summary, wording, HTML, Markdown, CSV."""
