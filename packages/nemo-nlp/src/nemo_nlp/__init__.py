"""Language models for NeMo."""
