"""Diffusion Contrastive Reconstruction (DCR) for CLIP vision encoders, on Hugging Face Trainer."""
