"""The words of the commands that make and check data."""

from experiments.parser.commands import Commands, command, group


def add_data(commands: Commands) -> None:
    """Declare ``data``."""
    data = group(commands, "data", "make, convert and verify datasets")
    synth = command(
        data,
        "synth",
        "data:synth",
        "generate a dataset in nuScenes layout",
        "data synth --root data/mini --seed 7",
    )
    synth.add_argument("--root", default="data/mini", help="folder to write to (%(default)s)")
    synth.add_argument("--seed", type=int, default=7, help="decides everything in it (%(default)s)")
    synth.add_argument("--version", default="v1.0-mini", help="name of the tables folder (%(default)s)")
    synth.add_argument("--frames", type=int, default=20, help="key frames per scene (%(default)s)")
    synth.add_argument(
        "--scenes",
        default="mini_train=8,mini_val=2",
        metavar="SPLIT=N,...",
        help="scenes per split (%(default)s)",
    )
    synth.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    synth.add_argument(
        "--rig",
        choices=("mini", "full"),
        default="mini",
        help="full: 1600 x 900 pixels, LiDAR at 20 Hz; mini: a quarter of it, key frames only (%(default)s)",
    )
    shard = command(
        data,
        "shard",
        "data:shard",
        "convert a dataset to Parquet shards",
        "data shard data/mini --split mini_train --out data/mini_shards",
    )
    shard.add_argument("root", help="dataset in nuScenes layout")
    shard.add_argument("--version", default="v1.0-mini", help="name of the tables folder (%(default)s)")
    shard.add_argument("--split", action="append", required=True, help="devkit split; may be repeated")
    shard.add_argument("--out", required=True, help="folder or URI (s3://...) of the shards")
    shard.add_argument(
        "--points",
        choices=("float32", "float16"),
        default="float32",
        help="float16: half the bytes, coordinates rounded by up to 16 mm within 64 m (%(default)s)",
    )
    shard.add_argument(
        "--workers",
        type=int,
        default=1,
        help="files written at once by tasks of Ray, here or on the cluster of RAY_ADDRESS; 1: without Ray "
        "(%(default)s)",
    )
    _add_made(data)
    check = command(
        data, "check", "data:check", "verify a dataset or shards, file by file", "data check data/mini"
    )
    check.add_argument("path", help="dataset in nuScenes layout, or a folder of shards")
    check.add_argument("--version", default="v1.0-mini", help="name of the tables folder (%(default)s)")


def _add_made(data: Commands) -> None:
    """Add the commands that make something of a split: pictures, an object database, an info file."""
    text = "draw augmented training samples with their boxes"
    example = "data draw data/full --config experiments/configs/cmt_voxel0100_r50_800x320_cbgs.py"
    draw = command(data, "draw", "data:draw", text, example)
    draw.add_argument("--config", help="config whose train_pipeline is applied (nothing is)")
    draw.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="override a config key")
    draw.add_argument("--frames", type=int, default=4, help="how many, spread over the split (%(default)s)")
    draw.add_argument("--epoch", type=int, default=0, help="training epoch, from 0 (%(default)s)")
    draw.add_argument("--seed", type=int, default=0, help="decides what is drawn at random (%(default)s)")
    draw.add_argument("--out", default="drawn", help="folder of the pictures (%(default)s)")
    text = "cut the objects of a split out, for GT sampling"
    database = command(
        data, "database", "data:database", text, "data database data/full --out data/full/database"
    )
    database.add_argument("--out", required=True, help="folder of the database")
    text = "write an info file of format 1.1, for mmdet3d's own NuScenesDataset"
    example = "data infos data/mini --out data/mini/nuscenes_infos_train.pkl"
    infos = command(data, "infos", "data:infos", text, example)
    infos.add_argument("--out", required=True, help="the .pkl file")
    for parser in (draw, database, infos):
        parser.add_argument("root", help="dataset in nuScenes layout, folder of shards, or info file")
        parser.add_argument("--version", default="v1.0-mini", help="name of the tables folder (%(default)s)")
        parser.add_argument("--split", default="mini_train", help="devkit split (%(default)s)")
