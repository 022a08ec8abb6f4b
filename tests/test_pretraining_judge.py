"""The judge of new weights: each bar on planted tables, met and missed."""

import pandas as pd
import pytest

from pez.errors import UserError
from pez.pretraining.judge import probe_bars

VARIABLES = ("direction_sincos", "speed", "acceleration")
GOOD = {"direction_sincos": 0.9, "speed": 0.85, "acceleration": 0.55}


def results(scores: dict[str, float], half: float = 0.05) -> pd.DataFrame:
    """A weak first layer and a best second one."""
    rows = [
        {
            "variable": name,
            "layer": layer,
            "r2_nested_pooled": score - 0.3 * (1 - layer),
            "r2_nested_pooled_low": score - half,
            "r2_nested_pooled_high": score + half,
        }
        for name, score in scores.items()
        for layer in (0, 1)
    ]
    return pd.DataFrame(rows)


def controls(position: float = 0.5, random: float = 0.1) -> pd.DataFrame:
    rows = [
        {"control": name, "control_seed": seed, "variable": variable, "protocol": protocol, "layer": 0}
        | {"r2_pooled": score, "r2_pooled_low": score - 0.1, "r2_pooled_high": score + 0.1}
        for name, score, seeds in (("position", position, 1), ("random_weights", random, 2))
        for seed in range(seeds)
        for variable in VARIABLES
        for protocol in ("nested",)
    ]
    rows.append({**rows[0], "protocol": "selected", "r2_pooled": 5.0, "r2_pooled_high": 5.0})  # not what is asked for
    return pd.DataFrame(rows)


def missed(bars) -> list[str]:
    return [bar.name.split(":")[0] for bar in bars if not bar.met]


def test_good_weights_meet_every_bar():
    bars = probe_bars(results(GOOD), controls(position=0.45), results({**GOOD, "speed": 0.5}))
    assert not missed(bars) and len(bars) == 7
    assert bars[0].asked == pytest.approx(0.55) and bars[0].measured == pytest.approx(0.85)


@pytest.mark.parametrize(
    ("scores", "position", "random", "names"),
    [
        ({"direction_sincos": 0.6}, 0.5, 0.1, ["direction"]),  # 0.55 is below 0.6: intervals overlap
        ({"direction_sincos": 0.4}, 0.1, 0.45, ["direction"]),  # apart from position, below random weights
        ({"speed": 0.79}, 0.45, 0.1, ["speed"]),
        ({"acceleration": 0.44}, 0.45, 0.1, ["acceleration"]),
    ],
)
def test_each_bar_can_be_missed(scores, position, random, names):
    assert missed(probe_bars(results(GOOD | scores), controls(position, random), None)) == names


def test_weights_below_the_shipped_ones_miss():
    bars = probe_bars(results(GOOD), controls(), results({**GOOD, "direction_sincos": 0.95}))
    assert missed(bars) == ["direction_sincos"]


def test_a_run_without_the_control_is_refused():
    with pytest.raises(UserError, match="no control position"):
        probe_bars(results(GOOD), controls().query("control != 'position'"), None)
