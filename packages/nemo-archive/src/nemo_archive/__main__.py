"""`python -m nemo_archive`: the command line of cli.py."""

import sys

from nemo_archive.cli import main

sys.exit(main())
