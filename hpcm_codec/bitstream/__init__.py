"""The bytes of a `.hpcm` file, as docs/bitstream.md defines them; nothing here depends on pictures or networks."""
