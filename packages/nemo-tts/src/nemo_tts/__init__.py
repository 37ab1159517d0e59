"""The place of NeMo's speech synthesis (Tacotron2, FastPitch, HiFi-GAN); there is no model here yet."""

__version__ = "3.0.0"
