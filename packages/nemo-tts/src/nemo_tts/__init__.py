"""Speech synthesis for NeMo."""
