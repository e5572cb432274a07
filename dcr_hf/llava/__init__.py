"""The enhanced tower inside LLaVA: is a folder fit for it, put it in, train it again."""
