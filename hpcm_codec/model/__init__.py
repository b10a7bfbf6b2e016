"""The network: its settings, layers, context model and the walk over the coding steps.

Attributes that hold modules or parameters name the tensors of checkpoints, and those names are part of the checkpoints' identities
(`weights.identity`): rename none of them.
"""
