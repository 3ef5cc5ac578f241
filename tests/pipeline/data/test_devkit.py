"""The devkit is imported without scikit-learn, which is there all the same where it is used."""

import subprocess
import sys

PROGRAM = """
import sys
from pipeline.data.devkit import import_devkit
import_devkit()
import nuscenes.nuscenes
assert not {"sklearn", "sklearn.metrics"} & set(sys.modules), "loaded, or still a stand-in"
assert nuscenes.nuscenes.sklearn.metrics.pairwise.euclidean_distances([[0.0]], [[3.0]]) == 3
import sklearn
assert sklearn.__file__
import_devkit()
assert sys.modules["sklearn"] is sklearn
"""


def test_the_devkit_is_imported_without_scikit_learn():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
