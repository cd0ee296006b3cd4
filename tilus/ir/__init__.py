"""The intermediate representation: thread-block-level programs over scalars and tensors."""
