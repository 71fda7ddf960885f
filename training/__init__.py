"""Offline training: data, losses, engine, evaluation and export; never imported by the product."""
