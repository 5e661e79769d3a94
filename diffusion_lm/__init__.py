"""Masked diffusion language models in notebooks: read them, run them on a laptop, scale them on GPUs.

The names of a first session can be imported from here: `from diffusion_lm import DiffusionLM`.
Each is looked up when it is first asked for, so that `import diffusion_lm` and `dlm --version` stay quick.
"""
from importlib import import_module

__version__ = "0.1.0"

_MODULES = {  # name → module that defines it
    "UserError": "core",
    "load_corpus": "text.corpus",
    "Tokenizer": "text.tokenizer",
    "train_tokenizer": "text.tokenizer",
    "ModelConfig": "models.transformer",
    "make_model": "models.make",
    "SampleOptions": "sampling.sampler",
    "denoise": "sampling.sampler",
    "DiffusionLM": "lm",
    "RunConfig": "training.recipe",
    "load_config": "training.recipe",
    "train": "training.run",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name):
    "Import the module of a name of the first session when somebody asks for it"
    if name not in _MODULES: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value  # the next look-up finds it here
    return value


def __dir__(): return sorted({*globals(), *_MODULES})
