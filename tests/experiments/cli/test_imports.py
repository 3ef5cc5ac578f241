"""Fast commands stay fast: what each of them must not import."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.planted_rows import screening

ROOT = Path(__file__).parents[3]
MINI = "experiments/configs/cmt_aqr_pillar_mini.py"
FULL = "experiments/configs/cmt_aqr_voxel0075_vov_1600x640_cbgs.py"
NO_TORCH = {"torch", "ray", "mlflow", "mmengine", "pandas", "scipy", "matplotlib", "statsmodels"}
NUMPY = {"scipy.stats", "scipy.optimize", "scipy.linalg", "pyarrow"} | NO_TORCH - {"scipy"}
"""A report may import numpy and scipy.special."""
FEW = {"ray", "mlflow", "pandas", "matplotlib", "statsmodels", "sklearn", "tensorboard", "torch._dynamo"}
FEW |= {"torch.distributed.fsdp", "mmdet.models.dense_heads.anchor_head", "mmengine.runner.runner"}
PROGRAM = """
import sys
from experiments.cli import main
try:
    code = main(sys.argv[2:])
except SystemExit as end:
    code = end.code
print(code, *(set(sys.argv[1].split(",")) & set(sys.modules)))
"""


def imported(words: list[str], heavy: set[str]) -> str:
    """Run a command; return its exit code and what it imported of the modules in question."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(heavy), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["--help"], NO_TORCH | {"numpy", "rich"}),
        (["operators", "bench", "--help"], NO_TORCH | {"numpy", "rich"}),
        (["study", "list"], NO_TORCH),
        (["study", "status", "smoke"], NO_TORCH),
        (["lint", MINI], FEW | {"scipy", "numba"}),
        (["plan", MINI], FEW | {"scipy", "numba", "sympy"}),
        (["plan", FULL], FEW | {"sympy"}),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_a_fast_command_imports_little(words, heavy):
    assert imported(words, heavy) == "0"


def test_a_check_of_cluster_files_needs_no_torch(tmp_path):
    path = tmp_path / "cluster.yaml"
    shutil.copyfile(ROOT / "cluster.yaml", path)
    assert imported(["cluster", "check", str(path)], NO_TORCH - {"ray"}) == "1", "ImageId is a placeholder"


def test_a_report_needs_neither_a_model_nor_figures_nor_large_libraries(tmp_path):
    study = shutil.copytree(ROOT / "tests/golden/report", tmp_path / "golden")
    screening(study, (1.3, 0.2))
    assert imported(["study", "report", str(study)], NUMPY) == "0"
