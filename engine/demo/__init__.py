"""The model a fresh clone serves: trained here, on the Python standard library, and stored beside this file."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""A Hugging Face checkpoint folder; its README.md is the model card."""
