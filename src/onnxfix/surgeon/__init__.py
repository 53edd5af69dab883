"""Patches: apply, revert, write back."""
