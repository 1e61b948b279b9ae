"""What is learned from reviews: data sets of reviewed cases, agreement of readers, labels to look at again, drift."""
