"""The commands of `nemo-archive`, a module each, imported when it is called.

A module has `EXAMPLE` (a command line and what it does), `add_arguments(parser)` and `run(arguments)`, which prints
what it found and gives the exit status. What goes wrong with a file is an ArchiveError or an OSError.
"""
