"""Tensor functions for speech models, each with a PyTorch twin."""
