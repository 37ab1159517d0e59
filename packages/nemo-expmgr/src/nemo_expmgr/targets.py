"""Lightning's strategies, which a `trainer.strategy` section may name by their own dotted paths."""

TARGETS: dict[str, tuple[str, ...]] = {
    f"lightning.pytorch.strategies.{name}": ()
    for name in ("DDPStrategy", "FSDPStrategy", "ModelParallelStrategy", "SingleDeviceStrategy")
}
