"""Speech recognition: train, restore and run NeMo's CTC models."""
