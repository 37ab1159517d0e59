"""`python -m nemo_kernels` is the command `nemo-kernels`."""

import sys

from nemo_kernels.cli import main

sys.exit(main())
