"""The one error of a config: the dotted path, the value found there, and the rule that it breaks.

model.encoder.n_heads: 7 does not divide d_model 512
"""

from collections.abc import Iterable
from typing import Final

MISSING: Final = "???"  # OmegaConf's mark for "a value must be given"
LISTED_KEYS = 12  # how many valid keys a message lists where none of them is near


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()  # the `value` of a ConfigError about something that is not there


class ConfigError(ValueError):
    """What is wrong at one place of a config, in one sentence.

    Args:
        path: dotted path of the entry, `model.train_ds.0.manifest_filepath`; empty for the whole config.
        value: the value found there; `ABSENT` if the sentence is not about a value.
        rule: the rest of the sentence, `does not divide d_model 512`.
    """

    def __init__(self, path: str, value: object, rule: str) -> None:
        self.path, self.value, self.rule = path, value, rule
        super().__init__(path, value, rule)

    def __str__(self) -> str:
        sentence = self.rule if self.value is ABSENT else f"{_shown(self.value)} {self.rule}"
        return f"{self.path}: {sentence}" if self.path else sentence


def _shown(value: object) -> str:
    if isinstance(value, str) and value == MISSING:
        return MISSING
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def join(path: str, key: object) -> str:
    """The dotted path of `key` below `path`."""
    return f"{path}.{key}" if path else str(key)


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that `name` was probably meant to be, or None where nothing is near."""
    import difflib

    by_folded = {_folded(candidate): candidate for candidate in valid}
    found = difflib.get_close_matches(_folded(name), by_folded, n=1, cutoff=0.5)
    return by_folded[found[0]] if found else None


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")


def unknown_key(path: str, key: str, value: object, valid: Iterable[str], owner: str) -> ConfigError:
    """The error for a key that `owner` does not have; names the nearest valid key, or else lists them."""
    names = sorted(valid)
    near = nearest(key, names)
    if near is not None:
        hint = f"; nearest valid key: {join(path, near)}"
    elif names:
        hint = "; valid keys: " + ", ".join(names[:LISTED_KEYS]) + (", ..." if len(names) > LISTED_KEYS else "")
    else:
        hint = " and takes none"
    return ConfigError(join(path, key), value, f"is given, but {owner} has no such key{hint}")


def missing_value(path: str) -> ConfigError:
    """The error for a `???` that is read."""
    return ConfigError(path, MISSING, f"stands for a value that must be given, as in {path}=<value>")


def from_constructor(error: ValueError, path: str, values: dict[str, object]) -> ConfigError:
    """The ConfigError for a constructor's own `ValueError("n_heads: 7 does not divide d_model 512")`.

    An error that has a config path keeps it; one that begins with the name of a key gets the section's path in
    front of it; any other is reported at the section itself.
    """
    if isinstance(error, ConfigError):
        if not path or error.path.split(".")[0] == path.split(".")[0]:
            return error
        return ConfigError(join(path, error.path) if error.path else path, error.value, error.rule)
    key, colon, rule = str(error).partition(": ")
    if not colon or key.split(".")[0] not in values:
        return ConfigError(path, ABSENT, str(error))
    value = values.get(key, ABSENT)
    shown = _shown(value) + " "
    if value is ABSENT or not rule.startswith(shown):
        return ConfigError(join(path, key), ABSENT, rule)
    return ConfigError(join(path, key), value, rule.removeprefix(shown))
