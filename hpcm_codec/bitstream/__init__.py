"""The bytes of a `.hpcm` file, as docs/bitstream.md defines them; nothing here knows pictures or networks."""
