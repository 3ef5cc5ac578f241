"""Find secrets in text, by their pattern and by the values of this process's environment variables.

Text that is shown, logged or sent passes through ``redact``. Settings that hold a secret are refused, because
they are copied into files, rows and MLflow.
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
"""Kind of secret -> regular expression. The group ``secret`` matches the secret itself."""

_NAME = re.compile(r"(?i)(?:token|secret|passw(?:or)?d|passphrase|credential|(?:access|api|private)_?key)s?$")
"""End of the name of an environment variable whose value is a secret."""

SHORTEST = 8
"""Least length in characters of a secret variable's value.

Shorter values (`true`, `none`) occur in many texts that hold no secret."""


class SecretError(ValueError):
    """Settings hold a secret. The message is one sentence and does not show the secret."""


def find_secret(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the kind of the first secret in a text, not the secret itself; empty if there is none."""
    for kind, shape in SHAPES.items():
        if re.search(shape, text):
            return kind
    variables = [name for name, value in _secrets(environment) if value in text]
    return f"the value of the environment variable {variables[0]}" if variables else ""


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the text with every secret replaced by ``***``."""
    for _, value in _secrets(environment):
        text = text.replace(value, MASK)
    for shape in SHAPES.values():
        text = re.sub(shape, lambda match: match[0].replace(match["secret"], MASK), text)
    return text


def _secrets(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (name, value) of the secret variables.

    The longest value comes first, because a shorter one may be a part of it.
    """
    secrets = [(n, v) for n, v in environment.items() if _NAME.search(n) and len(v) >= SHORTEST]
    return sorted(secrets, key=lambda pair: len(pair[1]), reverse=True)


def refuse_secrets(value: Any, at: str = "settings") -> None:
    """Refuse settings that hold a secret at any depth.

    Args:
        value: plain dicts, lists and values.
        at: path of ``value`` in the settings, for the message.

    Raises:
        SecretError: a value holds a secret. The message says where the secret is, not what it is.
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
