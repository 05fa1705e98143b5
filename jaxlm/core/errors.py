"""The exceptions that doors say in a line, and how a machine's own trouble reads."""

import re

OS_ERROR = re.compile(r"(?:os_error_code='|OS error )(\d+)")
"""How TensorStore writes an error number of the operating system in a message."""


class UserError(Exception):
    """Bad input from outside: a config value, a file, a source, a checkpoint.

    The message is one line for a person: what is wrong, where (file and line, or the
    config key), what is allowed and what to do. Doors print it without a traceback and
    exit with code 2. Every other exception is a bug of ours and keeps its traceback.
    """


class Lost(Exception):
    """The processes of a run did not come together, or one of them is gone.

    Nothing that this process was given is wrong, so that the same start may go well.
    Doors print it as they do a ``UserError``, and exit with ``code``: that of the
    process that ended first, or 75 (EX_TEMPFAIL of sysexits.h, "try again").
    """

    def __init__(self, message: str, code: int = 75):
        super().__init__(message)
        self.code = code
