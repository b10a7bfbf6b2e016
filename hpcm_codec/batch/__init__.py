"""Many pictures: which file becomes which, who does the work, what is finished already, and a record of it all.

`jobs` plans, `encoding` and `decoding` are the work on one picture, `tasks` what surrounds it (outputs that exist, errors, digests),
`engines` and `ray_engine` who does it, `manifest` the record. Nothing in here prints.
"""
