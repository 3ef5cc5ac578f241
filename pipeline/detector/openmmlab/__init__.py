"""Where mmdet3d and mmengine are adapted: data samples, optimizer, schedules."""
