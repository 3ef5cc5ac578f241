"""A link that opens a study in MLflow as a table of its trials: layers, accuracy, speed, price.

MLflow keeps the view behind a "share" link in a tag of the experiment, as JSON. So a view can be written
like any tag, with a name of ours as its key. A page of another version that reads less shows its own columns.
"""

import json
from collections.abc import Sequence

from mlflow import MlflowClient

from pipeline.config.plan import Plan
from pipeline.tracking.mlflow_store import EXPERIMENT
from pipeline.tracking.study_reader import StoredTrial

SHARED_VIEW = "mlflow.sharedViewState."
"""Key of the experiment's tag, before the view's own."""
TRIAL_PRICE = "price/slowdown_percent"
"""Metric of a trial: how much slower its plan trains than no bias, by the study's stopwatch."""
METRICS = ("clean/NDS", "clean/mAP", "train_samples_per_s", TRIAL_PRICE)
"""Columns, and charts above those that MLflow makes; the loss has its own."""
WIDTHS = {"params": 125, "metrics": 115}
"""Of a column, pixels: all of a study of three layers fit on a screen, accuracy, speed and price first."""


def save_view(client: MlflowClient, experiment: str, trials: Sequence[StoredTrial]) -> None:
    """Write the view of a study into its experiment, in place of an earlier one."""
    study = trials[0].first.study
    view = json.dumps(_view(study, _factors(trials)), separators=(",", ":"))
    client.set_experiment_tag(experiment, f"{SHARED_VIEW}biaswise-{study}", view)


def view_link(pages: str, experiment: str, study: str) -> str:
    """Return the address of the view of a study on MLflow's pages; if they are "", of a link within them."""
    page = f"#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey=biaswise-{study}"
    return f"{pages}/{page}" if pages else page


def latest_views(client: MlflowClient, pages: str, most: int = 5) -> dict[str, str]:
    """Return study -> address of its view, of the studies that began last, the newest first."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return {}
    parents = client.search_runs(
        [experiment.experiment_id],
        "tags.`biaswise.kind` = 'study'",
        max_results=20 * most,  # a confirmation is a run of its own, of the same study
        order_by=["attributes.start_time DESC"],
    )
    names = dict.fromkeys(run.data.tags["biaswise.study"] for run in parents)
    shown = [name for name in names if f"{SHARED_VIEW}biaswise-{name}" in experiment.tags][:most]
    return {name: view_link(pages, experiment.experiment_id, name) for name in shown}


def _factors(trials: Sequence[StoredTrial]) -> list[str]:
    """Return the sites at which the trials differ."""
    choices: dict[str, set[str]] = {}
    for trial in trials:
        for site, choice in Plan.parse(trial.first.plan).choices:
            choices.setdefault(site, set()).add(str(choice))
    return [site for site, found in choices.items() if len(found) > 1]


def _view(study: str, factors: Sequence[str]) -> dict[str, object]:
    params = [f"params.`{site}`" for site in factors]
    columns = [*(f"metrics.`{name}`" for name in METRICS), *params, "params.`seed`"]
    section = "accuracy-and-speed"
    charts = [(name, "BAR") for name in METRICS] + [("loss", "LINE")]
    return {
        "searchFilter": f"tags.`biaswise.study` = '{study}' and tags.`biaswise.kind` = 'trial'",
        "orderByKey": "metrics.`clean/NDS`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {column: WIDTHS[column.partition(".")[0]] for column in columns},
        "compareRunSections": [
            {
                "uuid": section,
                "name": "Accuracy, speed, price",
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
        ],
        "compareRunCharts": [
            {
                "uuid": f"{section}-{place}",
                "type": kind,
                "runsCountToCompare": 20,
                "metricSectionId": section,
                "deleted": False,
                "isGenerated": False,
                "metricKey": name,
                "displayName": name,
            }
            for place, (name, kind) in enumerate(charts)
        ],
        "isAccordionReordered": True,
    }
