"""A program whose hub is an emulated one: on_a_hub.py URL CACHE PROGRAM WORD ... The libraries read both when they are
imported, which a fork did before it began."""

import runpy
import sys

from huggingface_hub import constants

from helpers.hub import constants_for

url, cache, program, *words = sys.argv[1:]
for name, value in constants_for(url, cache).items():
    setattr(constants, name, value)
sys.argv = [program, *words]
runpy.run_path(program, run_name="__main__")
