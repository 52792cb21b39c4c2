"""Secrets in a user's URIs, masked before anything is printed or logged."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"""(://[^/\s:@"']*:)[^\s"']+@""")
_TOKEN = re.compile(r"""(://)[^/\s:@"']+@""")
_PARAMETER = re.compile(
    r"""([?&][^=&\s"']*(?:pass|pwd|token|secret|key|sig|credential)[^=&\s"']*=)[^&\s"'#]+""",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text with *** for the secrets in its URIs: passwords and tokens before an @, and secret parameters."""
    # Passwords first, since they keep the user's name; a token stands alone before the @.
    text = _PASSWORD.sub(r"\1***@", text)
    text = _TOKEN.sub(r"\1***@", text)
    return _PARAMETER.sub(r"\1***", text)
