"""What a model under construction must know of the file it comes from, without a constructor argument for it.

A model class, also a user's own, is built as `cls(cfg, trainer)`. The artifacts of the archive reach NemoModel.__init__
through a context variable, so restores in several threads never see each other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from nemo_expmgr.artifact_store import ArtifactStore


@dataclass
class _Restore:
    store: ArtifactStore | None  # None once the outermost model has taken it


_restore: ContextVar[_Restore | None] = ContextVar("nemo_expmgr_restore", default=None)


@contextmanager
def restoring(store: ArtifactStore) -> Iterator[None]:
    """Within this block a constructed NemoModel is one restored from a file with these artifacts."""
    token = _restore.set(_Restore(store))
    try:
        yield
    finally:
        _restore.reset(token)


def is_restoring() -> bool:
    """Whether a model is being built from a file in this thread."""
    return _restore.get() is not None


def take_artifacts() -> ArtifactStore:
    """The artifacts for the model whose construction starts: the file's for the outermost, none for those inside."""
    context = _restore.get()
    if context is None or context.store is None:
        return ArtifactStore()
    store, context.store = context.store, None
    return store
