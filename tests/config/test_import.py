import subprocess
import sys

HEAVY = ("hydra", "omegaconf", "torch", "yaml", "numpy", "antlr4", "lightning")


def test_importing_nemo_config_loads_neither_hydra_nor_omegaconf_nor_torch_and_prints_nothing():
    program = f"import sys, nemo_config; sys.exit(', '.join(set({HEAVY}) & set(sys.modules)) or 0)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_plain_section_is_built_without_omegaconf():
    program = (
        "import sys; from nemo_config import instantiate, register_targets, saved_config;"
        "register_targets({'a.B': dict}); assert instantiate({'_target_': 'a.B', 'x': [1]}) == {'x': [1]};"
        "saved_config({'x': 1}, target='a.B', references={}, derived={});"
        f"sys.exit(', '.join(set({HEAVY}) & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
