"Fits and plans of diffusion_lm.lab.scaling on experiments whose truth is known."
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from diffusion_lm.core import UserError, rng
from diffusion_lm.lab.scaling import (
    Point,
    Records,
    critical_compute,
    crossing,
    curves,
    effective_tokens,
    fit_decay,
    load_records,
    loss_within,
    plan,
    plan_lines,
    seed_spread,
    turning_point,
)

EPOCHS = np.array([2, 5, 10, 20, 50, 100.])


def ar(e): return 3.5 + 1.9*effective_tokens(1, e, 10)**-.6 + .15*np.log(np.maximum(e, 25)/25)
def diffusion(e): return 3.2 + 2.6*effective_tokens(1, e, 60)**-.5
def level(e): return np.full(len(e), 4.)


def points(name, law, trial=0, seeds=3, noise=.02, **kw):
    "Points of an arm that follows a law"
    g, more = rng(trial, name), {"objective": name, "arm": name} | kw
    made = [Point(unique_tokens=300_000, epochs=float(e), parameters=1_300_000, total_parameters=2_000_000,
                  flops=float(6*1.3e6*3e5*e), nats_per_token=float(loss + noise*g.standard_normal()), bits_per_byte=1.5,
                  kind="exact", seed=seed, **more) for e, loss in zip(EPOCHS, law(EPOCHS)) for seed in range(seeds)]
    return made


def arms(*laws, **kw): return curves([p for name, law in laws for p in points(name, law, **kw)])


def test_intervals_cover_the_truth():
    "At the size of the page: six numbers of epochs, three seeds at two of them, one at the others"
    grid = np.geomspace(2, 100, 4000)
    truth = grid[(diffusion(grid) < ar(grid)).argmax()]
    hits, trials = np.zeros(4), 150
    for trial in range(trials):
        both = [p for name, law in (("ar", ar), ("diffusion", diffusion)) for p in points(name, law, trial)]
        c = curves([p for p in both if p.seed == 0 or p.epochs in (10, 50)])
        spread = seed_spread(c)
        pairs = (loss_within(c["diffusion"], spread, 50), diffusion(50)), (turning_point(c["ar"], spread), 25), \
                (crossing(c["ar"], c["diffusion"], spread), truth), (fit_decay(c["diffusion"], spread), 60)
        hits += [e.low <= true <= e.high for e, true in pairs]
    assert (hits/trials >= .92).all(), hits/trials  # 93 % up to the noise of 150 trials


def test_no_crossing_is_an_answer():
    c = arms(("ar", ar), ("diffusion", lambda e: ar(e) + .5))
    e = crossing(c["ar"], c["diffusion"], seed_spread(c))
    assert (e.value, e.low, e.high) == (math.inf,)*3
    assert json.loads(json.dumps(str(e)))  # and can be written


def test_a_flat_arm_determines_nothing():
    c = arms(("ar", level))
    spread = seed_spread(c)
    e = fit_decay(c["ar"], spread)
    assert math.isnan(e.value) and e.high == math.inf
    t = turning_point(c["ar"], spread)
    assert t.low <= 5 and t.high >= 100


def test_a_late_crossing_is_not_cut_off_by_an_arm_that_was_stopped():
    "Autoregression was measured to 50 epochs and has turned by then: its best is known beyond"
    kept = [p for p in points("ar", ar, noise=.005) if p.epochs <= 50]
    c = curves(kept + points("diffusion", lambda e: diffusion(e) + .385, noise=.005))
    e = crossing(c["ar"], c["diffusion"], seed_spread(c))
    assert 50 < e.value < 100


def test_units_of_the_critical_compute():
    assert critical_compute(2.4e6) == pytest.approx(1.4e16, rel=.02)
    assert critical_compute(1e6) == pytest.approx(2.12e15, rel=1e-3)


@pytest.fixture(scope="module")
def records():
    return Records(points("ar", ar) + points("diffusion", diffusion), {"corpus": "made up"}, {"ar": "--objective ar"})


def test_plan_is_stable_and_json(records):
    r = plan(records, 3e5, 3, speed=20_000)
    text = json.dumps(r)
    assert json.loads(text)["recommend"] == r["recommend"] and plan(records, 3e5, 3, speed=20_000) == r
    assert r["rests_on"]["points"] == len(records.points)
    assert "| ar |" in "\n".join(plan_lines(r)[1])


@pytest.mark.parametrize("tokens", [9e5*1.01, 1e5*.99, 3e6, 3])
def test_plan_stays_within_what_was_measured(records, tokens):
    r = plan(records, tokens, 60*tokens/3e5, speed=20_000)
    assert r["recommend"] is None and "outside" in r["why_not"][0]


def test_plan_goes_by_the_nearest_text(records):
    large = [replace(p, unique_tokens=3_000_000, arm=p.arm + " large") for p in records.points]
    both = Records(records.points + large)
    assert plan(both, 2e6, 600, speed=20_000)["arms"][0]["arm"] == "ar large"
    assert plan(both, 4e5, 60, speed=20_000)["arms"][0]["arm"] == "ar"


def test_equal_arms_are_undecided():
    same = Records(points("ar", ar) + points("diffusion", ar, trial=7))
    r = plan(same, 3e5, 3, speed=20_000)
    assert r["recommend"] is None and r["why_not"][0].startswith("undecided")


def test_damaged_records(tmp_path):
    file = tmp_path/"r.json"
    file.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="damaged"): load_records(file)
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="no points"): load_records(file)
