"""tools/gradient_noise.py: the ratio of noise to signal is that of gradients whose law is known."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "tools"))
import gradient_noise


def drawn(rng, n, signal, noise, width=200):
    """n gradients with a squared mean of ``signal`` and a covariance of trace ``noise``."""
    mean = torch.full((width,), (signal / width) ** 0.5, dtype=torch.float64)
    return [mean + torch.tensor(rng.normal(0, (noise / width) ** 0.5, width)) for _ in range(n)]


@pytest.mark.parametrize(("signal", "noise"), [(1.0, 0.5), (2.0, 20.0)])
def test_the_ratio_is_unbiased_and_its_interval_covers(signal, noise):
    rng, found, covered = np.random.default_rng(0), [], 0
    for _ in range(200):
        text = gradient_noise.with_interval(drawn(rng, 30, signal, noise))
        value, low, high = map(float, re.findall(r"-?\d+\.\d+", text))
        found.append(value)
        covered += low <= noise / signal <= high
    assert np.mean(found) == pytest.approx(noise / signal, rel=0.1)
    assert covered >= 0.85 * 200


def test_equal_gradients_have_no_noise():
    one = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert gradient_noise.with_interval([one] * 5) == "0.00 [0.00, 0.00]"
