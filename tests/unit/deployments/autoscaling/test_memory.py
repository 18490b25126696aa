"""What the autoscaling policy learns."""

import random

from deployments.autoscaling.memory import dispersion


def test_dispersion_is_one_for_poisson_more_for_bursts_and_blind_to_trends() -> None:
    source = random.Random(1)
    poisson = [source.gauss(100, 10) for _ in range(240)]
    bursts = [source.gauss(100, 10) * (3 if at // 6 % 5 == 0 else 0.5) for at in range(240)]
    trend = [100 + at for at in range(240)]
    assert dispersion(poisson, 6) < 2
    assert dispersion(bursts, 6) > 20
    assert dispersion(trend, 6) == 1
    assert dispersion([], 6) == dispersion([0.0] * 50, 6) == 1.0
