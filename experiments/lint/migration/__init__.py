"""Configs of mmcv 1.x, as CMT's public repository has them: recognised, and written as configs of today."""
