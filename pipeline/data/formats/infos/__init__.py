"""Info files of mmdet3d, formats 1.0 and 1.1: what a converter wrote of every frame, as one pickle."""
