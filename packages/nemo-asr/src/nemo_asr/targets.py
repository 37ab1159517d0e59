"""Which class of this package answers to which of NVIDIA's dotted names (first: the one written when saving)."""

TARGETS: dict[str, tuple[str, ...]] = {}
