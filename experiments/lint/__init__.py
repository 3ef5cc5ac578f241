"""Lint: does the bias that a config asks for reach its attention sites, and which implementation computes it?

``pipeline.detector.inspection.survey`` reads the config, and the rules judge what it returns.
``pipeline.config.provenance`` finds the line where a key was written. ``fix`` edits the file, and
``formatting`` prints the report. Lint needs no data, no weights and no GPU.
"""
