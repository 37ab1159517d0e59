"""The hostile files of this folder as a whole: how many kinds there are, and that each has a message of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).parent
TABLES = {
    "test_pickles": ["ATTACKS"],
    "test_zips": ["ATTACKS"],
    "test_configs": ["ATTACKS"],
    "test_safetensors_headers": ["SAFETENSORS"],
    "test_distributed_metadata": ["ATTACKS"],
    "test_containers": ["IN_TAR", "HEADERS", "FILES"],
}


def catalogue() -> dict[str, tuple[str, str]]:
    """Kind to (what is attacked, what is said of it)."""
    kinds = {}
    for module_name, tables in TABLES.items():
        spec = importlib.util.spec_from_file_location(f"catalogue_{module_name}", FOLDER / f"{module_name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for table in tables:
            for attack, told in getattr(module, table).items():
                rule = told if isinstance(told, str) else told[-1]
                name = attack if isinstance(attack, str) else attack.__name__
                kinds[f"{module_name} {table} {name}"] = (module_name, rule)
    return kinds


def test_there_are_over_two_hundred_kinds_and_no_table_is_left_out():
    assert len(catalogue()) > 200
    assert set(TABLES) == {path.stem for path in FOLDER.glob("test_*.py")} - {"test_catalogue"}


def test_four_of_five_kinds_have_a_message_of_their_own_and_none_is_empty():
    messages = list(catalogue().values())
    assert all(rule.strip() for _, rule in messages)
    assert len(set(messages)) >= 0.8 * len(messages)
