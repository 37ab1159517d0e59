"""A Lightning run for NeMo models: base model, optimizers, schedules, experiment manager."""
