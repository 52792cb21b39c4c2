"""What a user's URIs hold and nobody else is to see."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"""(://[^/\s:@"']*:)[^\s"']+@""")
_TOKEN = re.compile(r"""(://)[^/\s:@"']+@""")
_PARAMETER = re.compile(
    r"""([?&][^=&\s"']*(?:pass|pwd|token|secret|key|sig|credential)[^=&\s"']*=)[^&\s"'#]+""",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text with *** for what is secret in its URIs: what stands before an @, and parameters that are named so."""
    text = _TOKEN.sub(r"\1***@", _PASSWORD.sub(r"\1***@", text))
    return _PARAMETER.sub(r"\1***", text)
