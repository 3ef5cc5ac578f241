"""The CMT-AQR detector. Only this package imports mmengine, mmcv, mmdet and mmdet3d.

Importing the package prepares those libraries (``openmmlab.compat``), because every module here imports them.
Importing ``pipeline.detector.build`` registers our classes in mmdet3d's registries.
"""

from pipeline.detector.openmmlab import compat

compat.prepare()
