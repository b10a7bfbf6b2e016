"""Many pictures: inputs and outputs, the processes that do the work, outputs that are finished already, and a record of the batch.

`jobs` plans, `encoding` and `decoding` are the work on one picture, `tasks` handles existing outputs, errors and digests,
`engines` and `ray_engine` run the tasks, `manifest` is the record. Nothing in here prints.
"""
