"""Secrets are found by shape and by the environment's values, masked where shown, refused where stored."""

from dataclasses import replace
from urllib.parse import quote, quote_plus

import pytest
import torch

from experiments.cli import main
from experiments.recipes.mini import smoke
from experiments.storage.study_folder import StudyFolder
from pipeline.metrics.rows import Row, append_rows
from pipeline.redaction import MASK, SecretError, find_secret, redact, refuse_secrets
from pipeline.storage.paths import ROOT
from pipeline.tracking.mlflow_sync import sync
from pipeline.training.preflight import check
from tests.experiments.planted_rows import Truth, decorate, plant

PASSWORD = "Xq7" + "vPlanted"
TOKEN = "planted-" + "9f3a71c2"

FOUND = [
    ("postgresql://me:" + PASSWORD + "@db:5432/mlflow", "a password in a URI", PASSWORD),
    ("s3://AKIA" + "IOSFODNN7EXAMPLE:abc/def@bucket", "an AWS access key", "AKIA" + "IOSFODNN7EXAMPLE"),
    ("export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI7MDENGbPxRfiCY", "the value of a token or key", "wJalrXUtn"),
    ('{"api_key": "0123456789abcdef0123"}', "the value of a token or key", "0123456789abcdef0123"),
    ("-----BEGIN RSA PRIVATE KEY-----MIIE", "a private key", "MIIE"),
    ("ghp_" + "a1" * 20, "a GitHub token", "a1a1"),
    ("hf_" + "a1" * 20, "a Hugging Face token", "a1a1"),
    ("http://" + TOKEN + "@host/x", "a token in a URI", TOKEN),
    ("https://" + PASSWORD + ":x-oauth-basic@host/x", "a token in a URI", PASSWORD),
    ("postgresql://me:a/b" + PASSWORD + "@c@db:5432/mlflow", "a password in a URI", PASSWORD),
    ("postgresql://me:1234/" + PASSWORD + "@db:5432/mlflow", "a password in a URI", PASSWORD),
    ("mysql://db/x?user=u&password=" + PASSWORD, "a password or token in a query", PASSWORD),
    ("http://host/x?token=" + PASSWORD + "#top", "a password or token in a query", PASSWORD),
    ("https://h/x#access_token=" + PASSWORD, "a password or token in a query", PASSWORD),
    ('{"db_password": "' + PASSWORD + '"}', "a password in JSON", PASSWORD),
    ("https://h/x?sv=1&sig=" + PASSWORD + "%3D", "a password or token in a query", PASSWORD),
    ("Authorization: Bearer " + PASSWORD, "the value of an authorization header", PASSWORD),
    ("host=db user=me password=" + PASSWORD, "a password", PASSWORD),
    ("AccountKey=" + "abc1" * 8 + "==;Endpoint=x", "the value of a token or key", "abc1abc1"),
    ("uri=postgresql%3A%2F%2Fme%3A" + PASSWORD + "%40db%2Fx", "a password in a URI", PASSWORD),
    (f"it said {TOKEN}.", "the value of the environment variable MY_SERVICE_TOKEN", TOKEN),
]
INNOCENT = (
    "sqlite:////home/me/mlflow.db",
    "http://127.0.0.1:5000/#/experiments/1",
    "s3://bucket/shards",
    "mode: token",
    "http://127.0.0.1:5000/x@y",
    "http://tracking.example.org:5000/teams/@me/x",
    "abfss://container@account.dfs.core.windows.net/x",
    "postgresql://me@db:5432/mlflow",
    "100 % of 50%25 at s3://bucket/a%20b",
    "authorization mode: token, password=$PASSWORD, pwd=None",
    "RAY_AUTH_TOKEN=$(cat ~/.ray/auth_token)",
    "me@host:path",
    "decoder.0.cross=window/sdpa_math;decoder.*.self=none/sdpa_math",
)
ENVIRONMENT = {"MY_SERVICE_TOKEN": TOKEN, "SHORT_TOKEN": "true", "PATH": "/usr/bin"}


@pytest.mark.parametrize(("text", "kind", "secret"), FOUND)
def test_found_and_masked(text, kind, secret):
    assert find_secret(text, ENVIRONMENT) == kind
    shown = redact(text, ENVIRONMENT)
    assert secret not in shown
    assert MASK in shown
    assert not find_secret(shown, ENVIRONMENT)


@pytest.mark.parametrize(
    "name",
    [
        *("GITHUB_PAT", "PAT", "MYSQL_PWD", "DB_PASS", "AZURE_STORAGE_CONNECTION_STRING", "CONNECTIONSTRING"),
        *("API_KEYS", "SENTRY_DSN", "STORAGE_KEY", "SESSION_COOKIE"),
    ],
)
def test_names_of_secret_variables(name):
    assert find_secret("a planted-9f3a b", {name: "planted-9f3a"}).endswith(name)


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "PATH", "COMPAT", "COMPASS", "KEYBOARD", "SSH_AUTH_SOCK"])
def test_names_of_other_variables(name):
    assert find_secret("a planted-9f3a b", {name: "planted-9f3a"}) == ""


@pytest.mark.parametrize(
    "spell", [lambda s: quote(s, safe=""), lambda s: quote(quote(s, safe="")), quote_plus]
)
def test_a_percent_encoded_value_is_found_and_masked(spell):
    value = "p/l@n t+ed?=\N{LATIN SMALL LETTER E WITH ACUTE}" + "9f3a"
    for text in (spell(value), spell(value).lower()):
        assert find_secret(f"at {text}.", {"DB_PASSWORD": value})
        assert redact(f"at {text}.", {"DB_PASSWORD": value}) == f"at {MASK}."


@pytest.mark.parametrize(
    "override",
    [("_api_key", '"hunter2"'), ("model.x", '{"password": "hunter2"}'), ("data.db_pass", '"hunter2"')],
)
def test_an_override_that_is_named_like_a_secret_is_refused(override):
    with pytest.raises(
        SecretError, match=r"^settings\.overrides\[0\] holds the value of \S+, and"
    ) as refused:
        refuse_secrets(replace(smoke().trials[0], overrides=(override,)).to_dict())
    assert "hunter2" not in str(refused.value)


def test_train_writes_no_file_before_it_refuses_a_secret(tmp_path):
    words = ["train", "smoke", "--local", "--runs-dir", str(tmp_path), "--cfg-options"]
    for option in ("_api_key=hunter2", "_other=hunter2", "model.nosuch.x=hunter2"):
        assert main([*words, option]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", INNOCENT)
def test_left_alone(text):
    assert find_secret(text, ENVIRONMENT) == ""
    assert redact(text, ENVIRONMENT) == text


def test_what_ships_holds_none():
    for settings in smoke().trials:
        refuse_secrets(settings.to_dict())
    configs = [*ROOT.glob("experiments/configs/*.py"), ROOT / "cluster.yaml", ROOT / "ray-job.yaml"]
    assert not [path for path in configs if find_secret(path.read_text(), {})]


def test_settings_with_a_secret_are_refused_before_a_file_is_written(tmp_path, monkeypatch):
    data = replace(smoke().trials[0].data, train=(f"https://me:{PASSWORD}@host/shards",))
    settings = replace(smoke().trials[0], data=data)
    message = r"^settings\.data\.train\[0\] holds a password in a URI, and settings are copied into files"
    with pytest.raises(SecretError, match=message) as refused:
        StudyFolder(tmp_path / "study").claim(replace(smoke(), trials=(settings,), rule=None), {})
    assert PASSWORD not in str(refused.value)
    with pytest.raises(SecretError, match=message):
        check(settings, tmp_path / "trial", torch.device("cpu"))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("MY_SERVICE_TOKEN", TOKEN)
    with pytest.raises(
        SecretError, match=r"overrides\[0\]\[1\] holds the value of the environment variable MY_SER"
    ):
        check(
            replace(settings, data=smoke().trials[0].data, overrides=(("a", f'"{TOKEN}"'),)), tmp_path, None
        )


def test_why_a_trial_failed_is_kept_without_its_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", TOKEN)
    folder = StudyFolder(tmp_path)
    folder.trial("t").mkdir(parents=True)
    folder.finish("t", f"no access to https://me:{PASSWORD}@host", f"Traceback: header {TOKEN}")
    kept = (folder.trial("t") / "status.json").read_text()
    assert PASSWORD not in kept
    assert TOKEN not in kept
    assert folder.failure("t") == f"no access to https://me:{MASK}@host"


@pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::sqlalchemy", "ignore:::alembic")
def test_a_planted_secret_reaches_neither_mlflow_nor_a_log(tmp_path, capsys, monkeypatch):
    """One in the environment, one in the URI of a server that is not there; then a real database."""
    monkeypatch.setenv("MY_SERVICE_TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    study = tmp_path / "runs" / "planted"
    base = Row("planted", "", "", "", "", 0.0, step=1, commit="abc", recipe_digest="r", time=1.0)
    for row in decorate(plant(Truth({"decoder.0.cross": 1.0}, seeds=(1,)), base=base)):
        append_rows(study / "trials" / row.trial / "rows.jsonl", [row])
    (study / "study.json").write_text("{}")

    nowhere = f"http://me:{PASSWORD}@127.0.0.1:1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nowhere)
    assert main(["study", "sync", str(study)]) == 1
    said = "".join(capsys.readouterr())
    assert f"http://me:{MASK}@127.0.0.1:1 did not take everything" in " ".join(said.split())
    assert PASSWORD not in said

    database = tmp_path / "mlflow.db"
    assert sync(study, f"sqlite:///{database}").unsent == 0
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert database in written
    assert not [path for path in written for word in (TOKEN, PASSWORD) if word.encode() in path.read_bytes()]


def test_a_server_that_listens_to_the_network_is_announced(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no database here: the server is refused, after the warning
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["ui", "--host", "0.0.0.0"]) == 2
    assert "--host 0.0.0.0 lets everybody who reaches this machine read and change the runs" in " ".join(
        capsys.readouterr().out.split()
    )
    assert main(["ui"]) == 2
    assert "warning" not in capsys.readouterr().out
