"""`python -m nemo_asr`: the same as the command `nemo-asr`."""

from nemo_asr.commands import main

raise SystemExit(main())
