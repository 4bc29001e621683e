"""Files and arrays in; RGB images, tensors and masks out."""
