"""The commands beside `generate`, one file each."""
