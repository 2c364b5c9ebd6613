"""Subjects of coeff-diffusion in Forge; `scripts/coeff_subjects.py` is what Forge loads."""
