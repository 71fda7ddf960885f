"""Synthetic labelled glioma patients built from the MNI152 template and its tissue maps."""
