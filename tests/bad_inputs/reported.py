"""What was found in version da22db2 on 2026-11-29: the case, what it did then, what it does now, which test.

A test is named by its file below ``tests`` and its function, or, for a line of the table of bad inputs, by
``in, at, value``.
"""

from typing import NamedTuple


class Reported(NamedTuple):
    """One case."""

    case: str
    before: str
    now: str
    test: str


SAME = "pipeline/data/formats/test_same_frame.py::"
PEOPLE = "pipeline/data/formats/test_as_people_have_them.py::"
WEIGHTS = "pipeline/detector/test_weights.py::"
API = "operators/test_api.py::"
RECTS = "operators/test_rects.py::"

DATA = (
    Reported("`data show old.pkl`: info file of mmdet3d 1.0", "refused", "read, the bits of the tables", SAME + "test_every_form_gives_the_same_bits"),
    Reported("clouds of 4 columns, stated", "1,000 points became 800", "read as they are", PEOPLE + "test_points_have_the_width_that_is_stated"),
    Reported("clouds of 6 columns, stated", "1,000 points became 1,200", "read as they are", PEOPLE + "test_points_have_the_width_that_is_stated"),
    Reported("clouds of 4 columns, not stated", "1,000 points became 800", "refused", "points, numbers per point, four, not stated"),
    Reported("a length that fits no number of columns", "refused as cut short", "refused, with the numbers that fit", "points, length, fits no number of columns"),
    Reported("box with 0 LiDAR and 5 radar points", "dropped, silently", "kept, through every format", SAME + "test_boxes_that_only_the_radar_sees_are_kept"),
    Reported("`data infos`: `bbox_3d_isvalid`", "from LiDAR alone", "from LiDAR or radar", PEOPLE + "test_a_box_counts_by_its_lidar_or_radar_points"),
    Reported("`bbox_3d_isvalid` of an info file", "not read", "read, and kept in shards", SAME + "test_every_form_gives_the_same_bits"),
    Reported("no class of the file among the ten", "no box, silently", "refused", "info file, categories, none of the ten"),
    Reported("some classes outside the ten", "left out, silently", "named with counts", PEOPLE + "test_classes_outside_the_ten_are_named_with_counts"),
    Reported("keys that mmdet3d's schema does not ask for", "refused as no info file", "may be missing", PEOPLE + "test_a_key_that_mmdet3d_does_not_ask_for_may_be_missing"),
    Reported("missing camera: no entry", "refused as no info file", "frame and camera named", "info file, images.CAM_BACK, no entry"),
    Reported("missing camera: `None`", "traceback", "frame and camera named", "info file, images.CAM_BACK, None"),
    Reported("missing camera: no file", "the file named", "frame and camera named", "image, file, missing"),
    Reported('`missing_cameras="black"`', "not there", "a black image", SAME + "test_a_missing_camera_is_named_or_black"),
    Reported("lag of a sweep of 5 s", "read, silently", "refused", "info file, lidar_sweeps.timestamp, 5 s before the key frame"),
    Reported("sweep after the key frame", "read, silently", "refused", "info file, lidar_sweeps.timestamp, after the key frame"),
    Reported("times in microseconds", "read, silently", "refused", "info file, lidar_sweeps.timestamp, in microseconds"),
    Reported("calibration of NaN, info file", "NaN, silently", "refused", "info file, lidar2cam, NaN"),
    Reported("calibration of NaN, tables", "NaN, silently", "refused", "calibrated_sensor.json, camera_intrinsic, NaN"),
    Reported("box of NaN, info file", "NaN, silently", "refused", "info file, bbox_3d, NaN"),
    Reported("size of NaN, tables", "NaN, silently", "refused", "sample_annotation.json, size, NaN"),
    Reported("size of 0", "read, silently", "refused", "info file, bbox_3d, a width of 0"),
    Reported("`data check`, `infos`, `objects`, `shard`, `show` of each form", "some only of tables", "each", "experiments/cli/test_data.py::test_every_command_takes_every_form_that_its_help_names"),
    Reported("`evaluate --split mini_val` without other splits", "asked for them", "works", "experiments/cli/test_data.py::test_evaluate_needs_no_other_split"),
    Reported("`.pth` of mmengine's Runner", "refused: numpy scalars, buffers", "read; the rest is named", WEIGHTS + "test_a_pickled_payload_does_not_run_and_is_named"),
    Reported("the same after two iterations of the mini", "refused", "the detections of our own file", "pipeline/detector/test_runner.py::test_the_runner_computes_what_our_loop_computes"),
    Reported("a weight that is not finite", "loaded, silently", "refused by name", "checkpoint, weights, NaN"),
    Reported("EMA weights beside the others", "not offered", "named by `#ema_state_dict`", WEIGHTS + "test_averaged_weights_of_mmengine_are_offered"),
    Reported("`torch.compile(fullgraph=True)`, five numbers of queries", "the second fails", "each implementation that runs here", "operators/test_compile.py::test_one_function_serves_all_numbers_of_queries"),
    Reported("a bias that the dtype cannot hold, `validate`", "infinite, silently", "refused", API + "test_validate_refuses_a_bias_that_the_dtype_cannot_hold"),
    Reported("the same, without `validate`", "NaN outside its window", "stays in its window", API + "test_a_weight_that_the_dtype_cannot_hold_stays_in_its_window"),
    Reported("factors that the dtype cannot hold", "infinite, silently", "refused", API + "test_validate_refuses_factors_that_the_dtype_cannot_hold"),
)  # fmt: skip

ATTACKS = (
    Reported("`report` of a folder whose settings name a config", "the config ran", "needs rows and study.json", "bad_inputs/test_nothing_runs.py::test_a_report_runs_no_config"),
    Reported("info file: object at offset 0 of `V8`", "SIGSEGV", "refused", "info file, an array's dtype, an object at offset 0 of V8"),
    Reported("info file: a field 2^30 bytes away", "SIGSEGV", "refused", "info file, an array's dtype, a field 2^30 bytes away"),
    Reported("info file: a subarray larger than its element", "SIGSEGV", "refused", "info file, an array's dtype, a subarray larger than it"),
    Reported("info file: `bytearray(2**60)`", "MemoryError", "refused", "info file, a bytearray, of 2^60 bytes"),
    Reported("info file: shared lists, 2^60 in all", "25 s", "refused", "info file, info_version, lists that share their content, 2^60 in all"),
    Reported("`leak -> /outside/secret.bin`", "copied by `data shard`", "refused", "sample_data.json, filename, a link out of the dataset"),
    Reported("`x -> /` with `x/tmp/…`", "copied by `data shard`", "refused", "sample_data.json, filename, through a link to /"),
    Reported("`--help` of what runs configs", "silent", "says so", "experiments/reporting/test_markdown_text.py::test_the_help_says_that_configs_are_code"),
    Reported("`.yaml` with a Python object", "ran", "refused", "config, a .yaml file, an object that runs code"),
    Reported("`type='subprocess.Popen'`", "ran", "refused", "config, model.img_backbone.type, subprocess.Popen"),
    Reported("`{{$SECRET:}}` of mmengine", "printed", "refused", "config, a variable, the value of a secret of the environment"),
    Reported("secrets in URIs, queries, variables, percent-encoded", "not masked", "masked", "pipeline/test_redaction.py::test_found_and_masked"),
    Reported("variables `*_PAT`, `*_PWD`, `*_CONNECTION_STRING` …", "not secret", "secret", "pipeline/test_redaction.py::test_names_of_secret_variables"),
    Reported("`train --cfg-options _api_key=…`", "refused after it was written", "refused before", "pipeline/test_redaction.py::test_train_writes_no_file_before_it_refuses_a_secret"),
    Reported("a second `study run` of a study", "deleted a trial's folder", "changes nothing", "experiments/study/test_second_start.py::test_a_command"),
    Reported("SIGTERM", "ends without a word", "143, and which command goes on", "experiments/cli/test_main.py::test_sigterm_says_that_work_is_kept"),
    Reported("`data check`: tokens of another file", "silent", "found", "manifest, tokens, of another file"),
    Reported("`data check`: a shard listed twice", "silent", "found", "manifest, files, a file twice"),
    Reported("`data check`: labels of -1", "silent", "found", "shards, labels, -1"),
    Reported("`data check`: fewer rows than the manifest says", "silent", "found", "shards, rows, one fewer than the manifest says"),
    Reported("`data check`: a rotation of zeros", "silent", "found", "sample_annotation.json, rotation, all 0"),
    Reported("`data check`: negative counts", "silent", "found", "sample_annotation.json, num_lidar_pts, -3"),
    Reported("`data check`: half a JPEG with an end marker", "silent", "found", "image, file, half of it, and an end marker"),
    Reported("EXIF orientation", "the picture turned", "read as it was written", "pipeline/data/test_images.py::test_exif_does_not_turn_the_picture"),
    Reported("`data shard` of NaN sizes", "written", "refused", "sample_annotation.json, size, NaN"),
    Reported("a FIFO for an image", "endless", "refused", "image, file, a named pipe"),
    Reported("a cycle of samples, `nbr_samples` 10^9", "endless", "refused", "scene.json, nbr_samples, 10^9, and samples in a circle"),
    Reported("a rule with a million seeds", "endless", "refused", "study.json, rule.seeds, a million"),
    Reported("JSON nested 200,000 deep: tables", "traceback", "refused", "tables, sample.json, nested 200,000 deep"),
    Reported("the same: manifest", "traceback", "refused", "manifest, file, nested 200,000 deep"),
    Reported("the same: rows", "traceback", "refused", "rows.jsonl, a line, nested 200,000 deep"),
    Reported("the same: study.json", "traceback", "refused", "study.json, file, nested 200,000 deep"),
    Reported("files that are not UTF-8", "traceback", "refused", "study.json, file, not UTF-8"),
    Reported("lone surrogates", "traceback", "refused", "rows.jsonl, metric, half a surrogate pair"),
    Reported("`1e400` in rows", "traceback", "refused", "rows.jsonl, value, 1e400"),
    Reported("`1e308` in rows", "traceback", "refused", "rows.jsonl, value, 1e308"),
    Reported("times of 1e20", "traceback", "refused", "rows.jsonl, time, 1e20"),
    Reported("waves of another type", "traceback", "refused", "interim_analyses.json, waves, a number"),
    Reported("FAILED of another type", "traceback", "refused", "status.json, error, a number"),
    Reported("a Parquet column missing", "traceback", "refused", "shards, labels, missing"),
    Reported("a Parquet column of nulls", "traceback", "refused", "shards, labels, null"),
    Reported("a sparse tensor in a `.pth`", "traceback", "refused", "checkpoint, weights, a sparse tensor"),
    Reported("strides beyond the storage", "traceback", "refused", "checkpoint, weights, 2^40 elements of one number"),
    Reported("symlink loops", "traceback", "refused", "study run, --runs-dir, links in a loop"),
    Reported("a path of 5,000 characters", "traceback", "refused", "study report, study, 5,000 characters"),
    Reported("`--out` that is a folder", "traceback", "refused", "plan, --out, a folder"),
    Reported("`image_size` of text", "traceback", "refused", "config, model.image_size, text"),
    Reported("a locale that is not UTF-8", "traceback", "prints", "experiments/test_terminal.py::test_a_locale_that_is_not_utf_8"),
    Reported("a path `[/tmp/x]`, `[nan, nan]`", "MarkupError; vanished", "printed", "experiments/test_terminal.py::test_text_is_no_markup"),
    Reported("ESC in a file", "reached the terminal", "spelled out", "experiments/test_terminal.py::test_a_terminal_gets_no_escape_but_ours"),
    Reported("`ui` on a port in use", "exit code 0", "refused", "ui, --port, in use"),
    Reported("`lint` of a config with `sys.exit(0)`", "exit code 0, silent", "refused", "config, file, leaves with exit code 0"),
    Reported("a JPEG that claims 65,500 x 65,500", '"is cut short"', "what it claims", "image, size, 65500 x 65500 claimed"),
    Reported("a table without a key", "`'name'`", "frame and key named", "sample_data.json, filename, no key"),
    Reported("`<script>` and `; curl` in report.md", "raw, unquoted", "spelled out, quoted", "experiments/reporting/test_markdown_text.py::test_nothing_of_it_is_markup"),
    Reported("pytest-benchmark beside pytest-xdist", "pytest fails (not reproduced)", "not loaded", "test_pytest_plugins.py::test_pytest_benchmark_is_not_loaded"),
    Reported("`rects`: a key 96 logits above, ruled out", "0 and no gradient", "right", "operators/test_conformance.py::test_largest_score_can_be_ruled_out"),
    Reported("`torch.func.jvp` through `rects`", "zero, silently", "refused", RECTS + "test_refuses_forward_mode"),
    Reported("NaN weight of a gaussian on a GPU", "-limit", "NaN", RECTS + "test_a_bias_that_is_nan_is_not_hidden"),
    Reported("`scale=` a tensor", "detached", "refused", API + "test_refuses_a_scale_whose_gradient_would_be_lost"),
    Reported("float8 weights", "taken", "refused", API + "test_refuses_float8"),
    Reported("head size 0", "ZeroDivisionError", "refused", API + "test_refuses_heads_without_elements"),
    Reported("`rank=2.0`", "TypeError from inside", "refused", API + "test_refuses_a_rank_that_is_no_whole_number"),
    Reported("mutation: `code_weights` of ones", "noticed by data outside the clone", "noticed", "pipeline/detector/head/test_losses.py::test_each_number_of_a_box_costs_its_own_factor"),
    Reported("mutation: augmentation without its seed", "not noticed", "noticed", "pipeline/data/loading/test_batches.py::test_two_seeds_draw_otherwise"),
    Reported("mutation: class ranges of 1 km", "not noticed", "noticed", "pipeline/evaluation/test_nuscenes_metric.py::test_a_car_counts_within_fifty_metres_alone"),
)  # fmt: skip
