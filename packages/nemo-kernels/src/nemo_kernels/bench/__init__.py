"""Benchmarks of the package's operations: `nemo-kernels bench`.

`problem` says what is measured, `transducer`, `relative_attention` and `front_end` which operations and beside whom,
`worker` measures one subject in its own process, `session` lets the processes take turns, `report` prints.
"""
