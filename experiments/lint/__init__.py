"""Lint: does the bias that a config asks for arrive where it is meant to, and what computes it?

``source`` finds where a key was written, ``rules`` judge what ``pipeline.detector.survey`` found in the
config, ``fix`` edits the file, ``show`` prints. Nothing here runs the model or needs a GPU.
"""
