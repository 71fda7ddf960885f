"""Review of segmentations: against a ground truth, against each other, and of how sure they are."""
