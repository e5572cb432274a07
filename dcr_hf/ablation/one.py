"""One run of an ablation, in a process of its own or under a launcher: any recipe's, with all options given."""

from dcr_hf.config import Recipe
from dcr_hf.run import main

if __name__ == "__main__":
    main(Recipe(encoder=""))
