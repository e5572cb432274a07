"""The whole method at a laptop's size: drawn scenes, a CLIP and a Stable Diffusion pretrained on them, DCR on both."""
