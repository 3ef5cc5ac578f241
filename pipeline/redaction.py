"""Find secrets in text, by their pattern and by the values of this process's environment variables.

Text that is shown, logged or sent passes through ``redact``. Settings that hold a secret are refused, because
they are copied into files, rows and MLflow.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import Any
from urllib.parse import unquote

MASK = "***"

_VALUE = r"[\"']?\s*[=:]\s*[\"']?(?P<secret>(?=\S*\d)[A-Za-z0-9][A-Za-z0-9+/_.~=-]{15,})"
_PASSWORD = r"[\"']?\s*=\s*[\"']?(?P<secret>(?!\*{3}|[$<{]|(?i:true|false|none|null)\b)[^\s\"'&;,]{4,})"
_QUERY_NAME = (
    r"[\w.-]*(?:token|passw(?:or)?d|passphrase|pwd|pass|secret|signature|sig|credential|api_?key|auth)"
)
_HOST_AND_PORT = r"(?!(?:[\w-]+\.[\w.-]+|localhost|\[[\da-fA-F:]+\]):\d{1,5}(?:[/?#]|$))"
SHAPES = {
    "an AWS access key": r"\b(?P<secret>(?:AKIA|ASIA)[0-9A-Z]{16})\b",
    "a private key": r"(?P<secret>-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*)",
    "a GitHub token": r"\b(?P<secret>(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{36,}))\b",
    "a Hugging Face token": r"\b(?P<secret>hf_[A-Za-z0-9]{30,})\b",
    "a Google API key": r"\b(?P<secret>AIza[0-9A-Za-z_-]{35})\b",
    "a token in a URI": (
        r"(?i:(?:https?|wss?|ftps?)://)(?P<secret>(?!\*{3}@)[^/\s:@\"'<>]+)(?::(?:x-oauth-basic)?)?@"
        r"|://(?P<other>(?=[^/\s:@]*\d)[\w-]{20,}):?@"
    ),
    "a password in a URI": rf"://{_HOST_AND_PORT}[^/\s:@\"'<>]*:(?P<secret>(?!\*{{3}}@)[^\s\"'<>]+)@",
    "a password or token in a query": (rf"(?i)[?&;#]{_QUERY_NAME}=(?P<secret>(?!\*{{3}})[^\s&;#\"'<>]+)"),
    "the value of an authorization header": (
        r"(?i)authorization[\"']?\s*[:=]\s*[\"']?(?:basic|bearer|token)\s+(?P<secret>(?!\*{3})[^\s\"']{8,})"
    ),
    "the value of a token or key": (
        r"(?i)(?:token|passw(?:or)?d|secret|access_?key|api_?key|account_?key|signature)" + _VALUE
    ),
    "a password in JSON": (
        r"(?i)[\"'][\w.-]*(?:passw(?:or)?d|passphrase|pwd|secret|api_?key)[\"']\s*:\s*"
        r"[\"'](?P<secret>(?!\*{3}|\$)[^\"']{4,})[\"']"
    ),
    "a password": r"(?i)(?<![A-Za-z])(?:[A-Za-z]+_)*(?:passw(?:or)?d|passphrase|pwd)" + _PASSWORD,
}
"""Kind of secret -> regular expression. A group, ``secret`` or ``other``, matches the secret itself."""

_NAME = re.compile(
    r"(?i)(?:token|secret|passw(?:or)?d|passphrase|credential|connection_?string|cookie|jwt"
    r"|(?:access|api|private|account|storage|signing|encryption|master|service|ssh)_?key)s?$"
    r"|(?:^|_)(?:pat|pass)$|_(?:pwd|auth|sas|dsn|conn_?str)$"
)
"""End of the name of an environment variable, or of a key of settings, whose value is a secret."""

SHORTEST = 8
"""Least length in characters of a secret variable's value.

Shorter values (`true`, `none`) occur in many texts that hold no secret."""


class SecretError(ValueError):
    """Settings hold a secret. The message is one sentence and does not show the secret."""


def is_secret_name(name: str) -> bool:
    """Return whether a variable or a key of this name holds a secret."""
    return _NAME.search(name.rpartition(".")[2]) is not None


def find_secret(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the kind of the first secret in a text, not the secret itself; empty if there is none."""
    return _find_secret(text, _secrets(environment))


def _find_secret(text: str, secrets: Sequence[tuple[str, str]]) -> str:
    """As ``find_secret``, from the name and value of the secret variables."""
    for spelled in dict.fromkeys((text, unquote(text))):
        for kind, shape in SHAPES.items():
            if re.search(shape, spelled):
                return kind
    variables = [name for name, value in secrets if _spellings(value).search(text)]
    return f"the value of the environment variable {variables[0]}" if variables else ""


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the text with every secret replaced by ``***``, percent-encoded ones too."""
    for _, value in _secrets(environment):
        text = _spellings(value).sub(MASK, text)
    text = _without_shapes(text)
    return re.sub(r"\S*%[0-9A-Fa-f]{2}\S*", _without_encoded, text) if "%" in text else text


def _without_shapes(text: str) -> str:
    for shape in SHAPES.values():
        text = re.sub(shape, _masked, text)
    return text


def _masked(match: re.Match[str]) -> str:
    """Return a match with the secret replaced."""
    groups = match.groupdict()
    group = "secret" if groups.get("secret") is not None else "other"
    start, end = (place - match.start() for place in match.span(group))
    return match[0][:start] + MASK + match[0][end:]


def _without_encoded(match: re.Match[str]) -> str:
    """Return a percent-encoded word; decoded and masked if a secret shows in it only then."""
    plain = unquote(match[0])
    shown = _without_shapes(plain)
    return match[0] if shown == plain else shown


@lru_cache(maxsize=256)
def _spellings(value: str) -> re.Pattern[str]:
    """Return a pattern that matches a value with any of its characters percent-encoded, once or twice."""
    letters = []
    for letter in value:
        coded = "".join(f"%(?:25)*{byte:02x}" for byte in letter.encode(errors="surrogateescape"))
        coded += r"|\+" * (letter == " ")
        letters.append(f"(?:{re.escape(letter)}|(?i:{coded}))")
    return re.compile("".join(letters))


@lru_cache(maxsize=4096)
def _is_secret_variable(name: str) -> bool:
    return _NAME.search(name) is not None


def _secrets(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (name, value) of the secret variables.

    The longest value comes first, because a shorter one may be a part of it.
    """
    named = [(name, environment[name]) for name in environment if _is_secret_variable(name)]
    secrets = [(name, value) for name, value in named if len(value) >= SHORTEST]
    return sorted(secrets, key=lambda pair: len(pair[1]), reverse=True)


def refuse_secrets(value: Any, at: str = "settings") -> None:
    """Refuse settings that hold a secret at any depth.

    Args:
        value: plain dicts, lists and values.
        at: path of ``value`` in the settings, for the message.

    Raises:
        SecretError: a value holds a secret. The message says where the secret is, not what it is.
    """
    # Settings hold hundreds of values, and few different ones.
    _refuse_found(value, at, cache(partial(_find_secret, secrets=_secrets(os.environ))))


def _refuse_found(value: Any, at: str, find: Callable[[str], str]) -> None:
    """Refuse settings in which ``find``, from a text to the kind of its secret, finds one."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_named(str(key), inner, f"{at}.{key}")
            _refuse_found(inner, f"{at}.{key}", find)
    elif isinstance(value, list | tuple):
        if len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], str):  # (key, JSON text)
            _refuse_named(value[0], _parsed(value[1]), at)
        for index, inner in enumerate(value):
            _refuse_found(inner, f"{at}[{index}]", find)
    elif kind := find(str(value)):
        raise _refusal(at, kind)


def _refuse_named(key: str, value: Any, at: str) -> None:
    """Refuse text under a key that names a secret, at any depth of an override's value."""
    if isinstance(value, str) and value.strip(" *") and is_secret_name(key):
        raise _refusal(at, f"the value of {key}")
    if isinstance(value, Mapping):
        for inner_key, inner in value.items():
            _refuse_named(str(inner_key), inner, at)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _refusal(at: str, kind: str) -> SecretError:
    return SecretError(
        f"{at} holds {kind}, and settings are copied into files, rows and MLflow; take it out, and give "
        "it to the workers in their environment or by their machine's role"
    )
