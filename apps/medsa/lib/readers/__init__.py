"""One module for each kind of image file: what is stored, with its affine, and whether it is in colour."""
