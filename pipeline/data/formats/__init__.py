"""Where frames come from: nuScenes tables, mmdet3d info files, Parquet shards."""
