"""What several ranks do together; skip this room if you have one GPU.

Read `process_group`, `shared_memory` (each byte read and held once), `shard_plan` and `gather`
(each rank brings a part), then `agreement` and `transport`, which choose.
"""
