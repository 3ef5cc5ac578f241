"""Find secrets in text, by what they look like and by the values of this process's environment.

What is shown, logged or sent passes through ``redact``; settings that hold a secret are refused, because they
are copied into files, rows and MLflow.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

MASK = "***"

_VALUE = r"[\"']?\s*[=:]\s*[\"']?(?P<secret>(?=\S*\d)[A-Za-z0-9][A-Za-z0-9+/_.~=-]{15,})"
SHAPES = {
    "an AWS access key": r"\b(?P<secret>(?:AKIA|ASIA)[0-9A-Z]{16})\b",
    "a private key": r"(?P<secret>-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*)",
    "a GitHub token": r"\b(?P<secret>gh[pousr]_[A-Za-z0-9]{36,})\b",
    "a Hugging Face token": r"\b(?P<secret>hf_[A-Za-z0-9]{30,})\b",
    "a Google API key": r"\b(?P<secret>AIza[0-9A-Za-z_-]{35})\b",
    "a password in a URI": r"://[^/\s:@]*:(?P<secret>(?!\*{3}@)[^/\s@]+)@",
    "the value of a token or key": r"(?i)(?:token|passw(?:or)?d|secret|access_key|api_key)" + _VALUE,
}
"""Kind of secret -> what it looks like, the secret itself in a group of that name."""

_NAME = re.compile(r"(?i)(?:token|secret|passw(?:or)?d|passphrase|credential|(?:access|api|private)_?key)s?$")
"""How the names of environment variables end whose values are secrets."""

SHORTEST = 8
"""Shorter values of such variables (`true`, `none`) stand in many innocent texts."""


class SecretError(ValueError):
    """A secret where everybody would read it; the message is one sentence."""


def find_secret(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the kind of the first secret in a text, never the secret; empty if there is none."""
    for kind, shape in SHAPES.items():
        if re.search(shape, text):
            return kind
    planted = [name for name, value in _secrets(environment) if value in text]
    return f"the value of the environment variable {planted[0]}" if planted else ""


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the text with every secret replaced by ``***``."""
    for _, value in _secrets(environment):
        text = text.replace(value, MASK)
    for shape in SHAPES.values():
        text = re.sub(shape, lambda found: found[0].replace(found["secret"], MASK), text)
    return text


def _secrets(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return name and value of the secret variables, longest value first: one may be a part of another."""
    found = [(n, v) for n, v in environment.items() if _NAME.search(n) and len(v) >= SHORTEST]
    return sorted(found, key=lambda pair: len(pair[1]), reverse=True)


def refuse_secrets(value: Any, at: str = "settings") -> None:
    """Refuse settings that hold a secret, wherever in them.

    Args:
        value: plain dicts, lists and values.
        at: its place, for the sentence.

    Raises:
        SecretError: says where, never what.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            refuse_secrets(inner, f"{at}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            refuse_secrets(inner, f"{at}[{index}]")
    elif kind := find_secret(str(value)):
        raise SecretError(
            f"{at} holds {kind}, and settings are copied into files, rows and MLflow; take it out, and give "
            "it to the workers in their environment or by their machine's role"
        )
