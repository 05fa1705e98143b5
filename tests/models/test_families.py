"""Every family against transformers and PyTorch: logits, and every gradient.

Models are small and random, written by transformers and read by ours. Errors are norms
of differences over norms of torch's figures, at real positions, dropout off. Two
correct fp32 implementations differ by rounding in another order of summation: a few
1e-7 for each layer.
"""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.parity

LIMIT = 1e-4


def error(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def build(torch, case, folder):
    """The model of a case, every parameter random, written to a folder."""
    import transformers

    kind = getattr(transformers, case.model)
    options = dict(case.config)
    config = kind.config_class(**options, attn_implementation="eager")
    torch.manual_seed(1)
    theirs = kind(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    theirs.save_pretrained(folder)
    return theirs
