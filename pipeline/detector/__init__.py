"""The CMT-AQR detector; the only package that imports mmengine, mmcv, mmdet and mmdet3d.

Importing it prepares those libraries (``compat``), because every module here needs them before its
own first line. The classes register themselves in mmdet3d when ``pipeline.detector.build`` is imported.
"""

from pipeline.detector.openmmlab import compat

compat.prepare()
