"""What tests of data share."""

import pytest

from jaxlm.core.errors import UserError
from jaxlm.data.sources import load


def refusal(source, split="train", **options):
    with pytest.raises(UserError) as caught:
        load(source, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
