"""One run of an ablation, as a separate process or under a launcher: a recipe with all options given."""

from dcr_hf.config import Recipe
from dcr_hf.run import main

if __name__ == "__main__":
    main(Recipe(encoder=""))
