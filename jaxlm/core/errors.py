"""The one exception that a user can mend, and how a machine's own trouble reads."""

import re

OS_ERROR = re.compile(r"(?:os_error_code='|OS error )(\d+)")
"""How TensorStore writes an error number of the operating system in a message."""


class UserError(Exception):
    """Bad input from outside: a config value, a file, a source, a checkpoint.

    The message is one line for a person: what is wrong, where (file and line, or the
    config key), what is allowed and what to do. Doors print it without a traceback and
    exit with code 2. Every other exception is a bug of ours and keeps its traceback.
    """
