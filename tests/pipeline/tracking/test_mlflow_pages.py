"""MLflow's own pages in a browser: what the link opens, and a trial in the middle of its training."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest

from pipeline.storage.trial_status import TrialState
from pipeline.tracking.mlflow_sync import sync
from pipeline.tracking.study_verdicts import SiteVerdict, StudyVerdicts
from tests.experiments.reporting.browser import chromium
from tests.machine import unused_port
from tests.pipeline.tracking.test_mlflow_sync import SITES, make_study, runs_of
from tests.statuses import write_status

pytestmark = [
    pytest.mark.slow(seconds=60),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium"),
    pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::sqlalchemy", "ignore:::alembic"),
]
PATIENCE_S = 120


@pytest.fixture
def address(tmp_path):
    """The pages of MLflow, with a study one of whose trials trains."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    study = make_study(tmp_path / "runs/shown", "shown", born=time.time() - 60)
    trial = study / "trials/w00-s1"
    write_status(trial, TrialState.RUNNING)
    metrics = {"cpu_utilization_percentage": 50.0}
    times = [time.time() - 50, time.time() - 40]
    lines = [json.dumps({"time": t, "node": 0, "trials": 1, "metrics": metrics}) + "\n" for t in times]
    (trial / "system_0.jsonl").write_text("".join(lines))
    data = {"train": ["data/mini"], "val": "data/mini", "train_split": "mini_train", "val_split": "mini_val"}
    (trial / "settings.json").write_text(json.dumps({"data": data}))
    verdicts = StudyVerdicts(
        tuple(SiteVerdict(site, "window", "PAYS", 1.0, 1.0, 10.0) for site in SITES),
        fixed_price_percent={"training": 20.0},
    )
    sync(study, uri, verdicts=verdicts, progress={"trials_done": 3.0})
    _, (parent,), children = runs_of(uri, study)
    port = unused_port()
    words = [sys.executable, "-m", "experiments.cli", "ui", "--port", str(port)]
    said = tmp_path / "said"
    with said.open("w") as file:
        server = subprocess.Popen(
            words,
            env=os.environ | {"MLFLOW_TRACKING_URI": uri},
            stdout=file,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    root = f"http://127.0.0.1:{port}/"
    try:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with suppress(OSError):
                urllib.request.urlopen(root, timeout=5).read()
                break
            time.sleep(0.5)
        (link,) = [line.split()[1] for line in said.read_text().splitlines() if line.startswith("  shown: ")]
        yield root, link, parent.info.run_id, children["w00-s1"].info.run_id
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(timeout=60)


async def texts(profile, pages):
    """Return the text of each page once it holds what is expected of it, (address, expected words)."""
    found = []
    async with chromium(profile) as tab:
        for url, expected in pages:
            await tab.open("about:blank#", 1600, 1000)
            await tab.ask("Page.navigate", url=url)
            text, deadline = "", time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline and not all(word in text for word in expected):
                await asyncio.sleep(0.5)
                text = await tab.value("document.body.innerText") or ""
            found.append(text)
    return found


def test_the_pages_show_a_study_while_it_trains(address, tmp_path):
    root, link, parent, trial = address
    run = f"{root}#/experiments/1/runs/{{}}/{{}}?workflowType=machine_learning"
    pages = [
        (link, ["decoder.0.cross", "decoder.1.cross", "clean/NDS", "clean/mAP", "4 matching runs"]),
        (f"{link}&compareRunsMode=CHART", ["Accuracy, speed, price", "clean/NDS", "loss"]),
        (run.format(trial, "system-metrics"), ["cpu_utilization_"]),
        (run.format(trial, ""), ["mini/mini_train", "Running"]),
        (run.format(parent, "model-metrics"), ["net_gain", "progress"]),
    ]
    shown = asyncio.run(texts(tmp_path / "profile", pages))
    for (url, expected), text in zip(pages, shown, strict=True):
        assert [word for word in expected if word not in text] == [], url
    table, charts, *_ = shown
    assert "shared view" in table
    assert "Model registry" in table  # the mode for training; the other one has prompts and judges
    assert "Judges" not in table
    assert charts.index("clean/NDS") < charts.index("loss")
