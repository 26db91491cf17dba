"""What a unit is made of: its tensors, who shows them, and where they lie in a slab.

Read `bindings`, `leaves` and `layout`, then `sources` (where bytes come from). `embeddings` are
tables that stay on the host, `autograd` is what recorded gradients need, `transfers` moves inputs.
"""
