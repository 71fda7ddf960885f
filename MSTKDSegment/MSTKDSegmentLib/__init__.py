"""Brain-tumour segmentation from whichever of T1, T1Gd, T2 and FLAIR a patient has.

Pure library code: importing this package needs none of torch, slicer, vtk or qt. torch is imported when a network is
built or run.
"""

__version__ = "0.1.0"
