"""Lint: does the bias that a config asks for arrive where it is meant to, and what computes it?

The rules judge what ``pipeline.detector.inspection.survey`` found in the config,
``pipeline.config.provenance`` says where it was written, ``fix`` edits the file, ``formatting`` prints.
Nothing here needs data, weights or a GPU.
"""
