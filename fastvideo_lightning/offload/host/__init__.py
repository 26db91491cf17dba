"""Where a unit's bytes wait on the host.

Read `slab` (memory of our own), `mapped` (the checkpoint's file itself), then `store`, which makes
the one or the other. `couriers` bring what waits in a file alone, by `file_reads`.
"""
