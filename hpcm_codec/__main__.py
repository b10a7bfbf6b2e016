"""`python -m hpcm_codec` is `hpcm`; `torchrun -m hpcm_codec train run …` trains in several processes."""

from hpcm_codec.cli.main import main

if __name__ == "__main__":
    main()
