"""Lightning callbacks of the experiment manager; each works with any LightningModule."""
