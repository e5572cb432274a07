"""A recipe whose first process takes its time to make a stage's result of the last checkpoint."""

import time

from dcr_hf import Recipe
from dcr_hf.run import main
from dcr_hf.training import fit

finish_from = fit.finish_from


def slowly(checkpoint, folder):
    time.sleep(3)
    finish_from(checkpoint, folder)


if __name__ == "__main__":
    fit.finish_from = slowly
    main(Recipe(encoder="from/options"))
