"""Files in, arrays out: data sets, the phantom, images, splits, audit."""
