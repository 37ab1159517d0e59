"""The place of NeMo's language models (TransformerLM, translation, GPT); there is no model here yet."""

__version__ = "3.0.0"
