"""Dataset formats: nuScenes tables, mmdet3d info files, Parquet shards."""
